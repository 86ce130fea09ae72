"""Single calls that are submitted while many are under way travel together; each is still a call of its own."""

import collections
import concurrent.futures
import os
import re
import threading

import pytest

import calls
import ipbroker
from test_calls import wait_until


@pytest.fixture
def many(client):
    """Enough calls under way that those submitted now travel together; when the test begins, both engines are busy."""
    naps = [client.submit(calls.nap, 600) for _ in range(2)]
    wait_until(lambda: all("has had it" in client.explain(nap) for nap in naps))
    yield naps, [client.submit(calls.square, n) for n in range(40)]
    for nap in naps:
        nap.cancel()


def go_on(many):
    for nap in many[0]:
        nap.cancel()


def together(futures):
    """Those that travelled with others: members of arrays."""
    return [future for future in futures if ":" in future.id]


def test_each_has_its_result_in_its_place(client, many):
    futures = [client.submit(calls.square, n) for n in range(3000)]
    assert len({future.id for future in futures}) == 3000 and len(together(futures)) > 2900
    go_on(many)
    assert [future.result(60) for future in [*many[1], *futures]] == [n * n for n in [*range(40), *range(3000)]]


def test_each_fails_by_itself(client, many):
    def even(n):
        if n % 2:
            raise calls.Custom(n, "odd")
        return n

    futures = [client.submit(even, n) for n in range(200)]
    assert len(together(futures)) > 100
    go_on(many)
    for n, future in enumerate(futures):
        if n % 2:
            error = future.exception(60)
            assert isinstance(error, calls.Custom) and error.code == n
            assert future.info.status == "error"
        else:
            assert future.result(60) == n and future.info.status == "ok"


def test_each_is_told_of_by_itself(client, many, capfd):
    def work(n):
        if n in (50, 51):
            print(f"printed by {n}")
        calls.nap(0.05 if n == 99 else 0)

    futures = [client.submit(work, n) for n in range(100)]
    assert together(futures[50:52]) and together(futures[99:])
    go_on(many)
    concurrent.futures.wait(futures, 60)
    infos = [future.info for future in futures]
    assert [info.id for info in infos] == [future.id for future in futures]
    assert [info.stdout for info in infos[49:53]] == ["", "printed by 50\n", "printed by 51\n", ""]
    assert 0.05 <= infos[99].duration < 5
    assert 0.04 <= (infos[99].completed - infos[99].started).total_seconds() < 5
    assert sum(info.duration for info in infos[:50]) < 1
    assert sorted(capfd.readouterr().out.split("\n")) == ["", "printed by 50", "printed by 51"]


def test_some_are_tried_again_and_each_is_told_of_by_itself(client, many, capfd, tmp_path):
    def work(n):
        print(f"printed by {n}")
        if n % 3 == 0:
            # The second try finds that there was a first.
            first = tmp_path / str(n)
            if not first.exists():
                first.touch()
                raise ValueError(n)
        return n

    view = client.view(retries=1)
    futures = [view.submit(work, n) for n in range(300)]
    assert len(together(futures)) > 200
    go_on(many)
    assert [future.result(60) for future in futures] == list(range(300))
    assert [future.info.stdout for future in futures] == [f"printed by {n}\n" for n in range(300)]
    text = []

    def all_is_printed():
        # The ends of lines of two engines may come one after the other.
        text.append(capfd.readouterr().out)
        printed = collections.Counter(map(int, re.findall(r"printed by (\d+)", "".join(text))))
        return printed == {n: 1 if n % 3 else 2 for n in range(300)}

    wait_until(all_is_printed)


def test_each_is_cancelled_by_itself(client, many):
    futures = [client.submit(calls.square, n) for n in range(100)]
    chosen = together(futures)[10]
    assert chosen.cancel()
    client.abort(together(futures)[20])
    go_on(many)
    gone = [future for future in futures if isinstance(_error(future), concurrent.futures.CancelledError)]
    assert gone == [chosen, together(futures)[20]]


def _error(future):
    try:
        return future.exception(60)
    except concurrent.futures.CancelledError as error:
        return error


def test_one_that_runs_is_stopped_and_the_others_go_on(client, many):
    def work(n):
        calls.nap(600 if n == 60 else 0)
        return n

    futures = [client.submit(work, n) for n in range(100)]
    assert together([futures[60]])
    go_on(many)
    others = futures[:60] + futures[61:]
    # Those that ended just before it began, too.
    assert not concurrent.futures.wait(others, 60).not_done
    assert not futures[60].done() and "has had it" in client.explain(futures[60])
    assert futures[60].cancel()
    assert [future.result(60) for future in others] == [n for n in range(100) if n != 60]
    assert client.submit(calls.square, 3).result(60) == 9


def test_others_wait_for_one_of_them(client, many):
    futures = [client.submit(calls.nap, 0, n) for n in range(100)]
    one = together(futures)[5]
    after = client.view(after=[one]).submit(calls.square, 7)
    follow = client.view(follow=[one]).submit(calls.pid)
    wait_until(lambda: one.id in client.explain(after))
    # This one has found no company when it leaves, and is waited for, too.
    last = client.view(after=[after]).submit(calls.square, 8)
    go_on(many)
    assert last.result(60) == 64 and last.info.id == last.id
    assert after.result(60) == 49 and after.done()
    assert isinstance(follow.result(60), int) and follow.info.engine_id == one.info.engine_id


def test_the_store_knows_each(client, many):
    futures = [client.submit(calls.square, n) for n in range(100)]
    go_on(many)
    concurrent.futures.wait(futures, 60)
    asked = together(futures)[:3]
    wait_until(lambda: all(record.get("result_metadata") for record in client.records(asked).values()))
    records = client.records(asked)
    assert sorted(records) == sorted(future.id for future in asked)
    for future in asked:
        told = records[future.id]["result_metadata"]
        assert told["duration"] == future.info.duration and told["status"] == "ok"


def test_other_functions_options_and_threads_do_not_mix(client, many):
    results = {}

    def submit(name, view, function):
        results[name] = [view.submit(function, n) for n in range(200)]

    work = [
        ("square", client.view(), calls.square),
        ("retried", client.view(retries=2), calls.square),
        ("negative", client.view(), lambda n: -n),
    ]
    threads = [threading.Thread(target=submit, args=one) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    go_on(many)
    assert [future.result(60) for future in results["square"]] == [n * n for n in range(200)]
    assert [future.result(60) for future in results["retried"]] == [n * n for n in range(200)]
    assert [future.result(60) for future in results["negative"]] == [-n for n in range(200)]


def test_a_lost_interpreter_costs_the_call_that_took_it(client, many):
    def work(n):
        if n == 60:
            os._exit(3)
        return n

    futures = [client.submit(work, n) for n in range(100)]
    assert together([futures[60]])
    go_on(many)
    with pytest.raises(ipbroker.EngineError):
        futures[60].result(60)
    assert [future.result(60) for n, future in enumerate(futures) if n != 60] == [n for n in range(100) if n != 60]
