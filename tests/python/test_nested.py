"""Calls that submit calls and wait for them: on two engines, at any depth."""

import asyncio
import concurrent.futures
import os
import time
from concurrent.futures import CancelledError

import pytest

import ipbroker


def fib(n):
    import ipbroker

    if n < 2:
        return n
    client = ipbroker.current_client()
    a, b = client.submit(fib, n - 1), client.submit(fib, n - 2)
    return a.result() + b.result()


def tree(depth):
    import ipbroker

    if depth == 0:
        return 1
    return sum(ipbroker.current_client().view().map(tree, [depth - 1] * 2))


def chain(depth):
    import ipbroker

    return 0 if depth == 0 else 1 + ipbroker.current_client().submit(chain, depth - 1).result()


def test_a_recursive_function_ends_on_two_engines(client):
    assert client.submit(fib, 11).result(100) == 89


def test_a_tree_of_maps_ends(client):
    assert client.submit(tree, 10).result(100) == 1024


def test_a_lower_priority_is_no_way_to_wait_for_ever(client):
    def outer(depth):
        import ipbroker

        inner = ipbroker.current_client().view(priority=-depth)
        return 0 if depth == 0 else 1 + inner.submit(outer, depth - 1).result()

    assert [future.result(100) for future in [client.submit(outer, 6) for _ in range(4)]] == [6] * 4


def test_a_chain_is_deeper_than_there_are_engines(client):
    assert client.submit(chain, 40).result(100) == 40


def test_both_engines_wait_for_each_other(client):
    def outer(x):
        import ipbroker

        return ipbroker.current_client().submit(abs, x).result()

    futures = [client.submit(outer, -x) for x in range(6)]
    assert [future.result(60) for future in futures] == list(range(6))


def test_an_executor_inside_of_a_call_waits_without_holding_the_engine_up(client):
    def outer():
        import ipbroker

        with ipbroker.current_client().executor() as executor:
            futures = [executor.submit(pow, 2, x) for x in range(5)]
        return [future.result() for future in futures]

    assert client.submit(outer).result(60) == [1, 2, 4, 8, 16]


def test_an_error_of_an_inner_call_is_the_outer_ones(client):
    def inner():
        raise ValueError("inner")

    def outer():
        import ipbroker

        return ipbroker.current_client().submit(inner).result()

    with pytest.raises(ValueError, match="inner"):
        client.submit(outer).result(60)


def test_a_call_that_waits_can_be_stopped(client, tmp_path):
    mark = tmp_path / "begun"

    def forever():
        import time

        mark.touch()
        time.sleep(1000)

    def outer():
        import ipbroker

        return ipbroker.current_client().submit(forever).result()

    future = client.submit(outer)
    until(mark.exists)
    client.abort()
    with pytest.raises(CancelledError):
        future.result(30)
    # Both engines take calls again.
    assert [client.submit(os.getpid).result(60) > 0 for _ in range(4)] == [True] * 4


@pytest.fixture(scope="module")
def alone():
    """The client of a cluster of one engine: a wait in which it does nothing else would never end."""
    with ipbroker.Cluster(n=1) as cluster:
        with cluster.client() as client:
            yield client


def results(client, futures):
    return [future.result() for future in futures]


def waited(client, futures):
    done, left = concurrent.futures.wait(futures)
    assert not left
    return [future.result() for future in futures if future in done]


def first_waited(client, futures):
    done, _ = concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_COMPLETED)
    return sorted(future.result() for future in futures) if done else None


def as_completed(client, futures):
    return sorted(future.result() for future in concurrent.futures.as_completed(futures))


def with_exceptions(client, futures):
    return [future.result() for future in futures if future.exception() is None]


def executor(client, futures):
    with client.executor() as executor:
        more = [executor.submit(abs, -at) for at in range(3)]
        executor.map(abs, [1, 2])
    return [future.result() for future in more]


def maps(client, futures):
    view = client.view()
    assert list(view.map(abs, range(300))) == list(range(300))
    return sorted(view.map_unordered(abs, [0, -1, -2]))


def map_reduce(client, futures):
    return [total for _, total in client.view().map_reduce(lambda x: [(x, x)], lambda group: (group[0], sum(group[1])), range(3))]


def jobs(client, futures):
    jobs = client.run([f"exit {code}" for code in range(3)])
    assert jobs.wait() and sorted(job["cmd"] for job in jobs.as_completed()) == ["exit 0", "exit 1", "exit 2"]
    return [job["result"]["code"] for job in jobs]


def progress(client, futures):
    return [job["result"]["code"] for job in client.run([f"exit {code}" for code in range(3)]).progress()]


def awaited(client, futures):
    async def main():
        return await asyncio.gather(*futures)

    return asyncio.run(main())


def joblib_(client, futures):
    import joblib

    import ipbroker.joblib

    ipbroker.joblib.register(client)
    with joblib.parallel_config("ipbroker"):
        return joblib.Parallel()(joblib.delayed(abs)(-at) for at in range(3))


def nested(wait, depth):
    """Calls that submit calls, and wait for them in one of the ways above."""
    client = ipbroker.current_client()
    if depth > 0:
        assert client.submit(nested, wait, depth - 1).result() == [0, 1, 2]
    return wait(client, [client.submit(abs, -at) for at in range(3)])


WAYS = [results, waited, first_waited, as_completed, with_exceptions, executor, maps, map_reduce, jobs, progress, awaited]


@pytest.mark.parametrize("wait", WAYS, ids=lambda wait: wait.__name__)
def test_every_wait_goes_on_with_one_engine(alone, wait):
    assert alone.submit(nested, wait, 2).result(60) == [0, 1, 2]


def test_joblib_goes_on_with_one_engine(alone):
    pytest.importorskip("joblib")
    assert alone.submit(nested, joblib_, 1).result(60) == [0, 1, 2]


def test_coroutines_have_their_turns_while_one_waits(alone):
    def inner(depth):
        async def main():
            ticks = 0
            future = asyncio.ensure_future(wait(ipbroker.current_client().submit(inner, depth - 1))) if depth else None
            while future is not None and not (future.done() and ticks > 3):
                await asyncio.sleep(0.001)
                ticks += 1
            return depth if future is None else await future

        async def wait(future):
            return await future

        return asyncio.run(main())

    assert alone.submit(inner, 3).result(60) == 0


@pytest.mark.parametrize("way", ["result", "map", "wait", "jobs"])
def test_what_a_stopped_call_waits_for_is_stopped(alone, tmp_path, way):
    """Also where its own engine runs that."""
    mark = tmp_path / "begun"

    def forever(mark):
        import time

        mark.touch()
        time.sleep(1000)

    def outer():
        client = ipbroker.current_client()
        if way == "jobs":
            client.run([f"touch {mark}; sleep 1000"]).wait()
        elif way == "map":
            list(client.view().map(forever, [mark]))
        elif way == "wait":
            concurrent.futures.wait([client.submit(forever, mark)])
        else:
            client.submit(forever, mark).result()

    future = alone.submit(outer)
    until(mark.exists)
    assert future.cancel()
    until(lambda: not any(alone.status()["tasks"][state] for state in ("ready", "running")))
    assert alone.submit(os.getpid).result(60) > 0


def until(there, seconds=60):
    limit = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < limit, "it never came"
        time.sleep(0.01)
