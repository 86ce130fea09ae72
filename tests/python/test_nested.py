"""Calls that submit calls and wait for them: on two engines, at any depth."""

import os
import time
from concurrent.futures import CancelledError

import pytest



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
    limit = time.monotonic() + 60
    while not mark.exists():
        assert time.monotonic() < limit
        time.sleep(0.01)
    client.abort()
    with pytest.raises(CancelledError):
        future.result(30)
    # Both engines take calls again.
    assert [client.submit(os.getpid).result(60) > 0 for _ in range(4)] == [True] * 4
