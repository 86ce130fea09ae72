"""Maps: order, laziness, chunks, ends."""

import gc
import itertools
import operator
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings

import pytest

import calls
import ipbroker


def test_results_are_in_order(executor):
    assert list(executor.map(calls.square, range(20_000))) == [x * x for x in range(20_000)]
    assert list(executor.map(operator.add, range(5), itertools.count(10))) == [10, 12, 14, 16, 18]
    assert list(executor.map(calls.square, [])) == []
    assert list(executor.map(lambda x: -x, range(100), chunksize=7)) == [-x for x in range(100)]


def test_unordered_star_and_none(client):
    view = client.view()
    assert sorted(view.map_unordered(calls.square, range(3000))) == [x * x for x in range(3000)]
    assert list(view.starmap(pow, [(2, 3), (3, 2)])) == [8, 9]
    assert list(view.map(len, ["", "a", "bb"])) == [0, 1, 2]


def test_a_failure_is_raised_at_its_place(executor):
    def odd(x):
        if x == 5:
            raise KeyError(x)
        return x

    results = executor.map(odd, range(10))
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(KeyError) as caught:
        next(results)
    assert "in odd" in str(caught.value.__cause__)
    with pytest.raises(StopIteration):
        next(results)


@pytest.mark.parametrize(
    "end, error, what",
    [
        ("sys.exit(4)", SystemExit, "4"),
        ("raise GeneratorExit('end')", GeneratorExit, "end"),
        ("return threading.Lock()", ipbroker.PicklingError, "the result, a _thread.lock, cannot be pickled"),
    ],
)
def test_what_comes_before_a_failure_is_there(executor, end, error, what):
    there = {"__name__": "__main__"}
    exec(f"def odd(x):\n    import sys, threading\n    if x == 270:\n        {end}\n    return x", there)
    results = executor.map(there["odd"], range(400), chunksize=50)
    assert [next(results) for _ in range(270)] == list(range(270))
    with pytest.raises(error, match=what) as caught:
        next(results)
    assert what in str(caught.value.__cause__)


def test_arguments_are_read_as_results_are_consumed(executor):
    read = 0

    def numbers():
        nonlocal read
        while True:
            yield read
            read += 1

    results = executor.map(calls.nap, itertools.repeat(0.002), numbers())
    assert [next(results) for _ in range(300)] == list(range(300))
    assert read < 20_000
    results.close()
    assert executor.submit(calls.square, 3).result(60) == 9


def test_shutdown_while_another_thread_consumes(client):
    """Both send what is left of the arguments: they do not mix."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(5):
            executor = client.executor()
            values, begun = [], threading.Event()

            def consume(results=executor.map(calls.square, range(100_000)), values=values, begun=begun):
                for value in results:
                    values.append(value)
                    if len(values) == 100:
                        begun.set()

            thread = threading.Thread(target=consume)
            thread.start()
            assert begun.wait(60)
            executor.shutdown()
            thread.join(60)
            assert values == [n * n for n in range(100_000)]
    finally:
        sys.setswitchinterval(before)


def test_a_buffer_has_a_size(executor):
    read = 0

    def numbers():
        nonlocal read
        for read in range(1, 1001):
            yield read

    results = executor.map(calls.square, numbers(), buffersize=7)
    assert read == 7
    for at in range(1, 1001):
        assert next(results) == at * at and read <= at + 7
    assert list(executor.map(calls.square, range(100), chunksize=10, buffersize=3)) == [n * n for n in range(100)]
    for bad, error in [(0, ValueError), ("7", TypeError)]:
        with pytest.raises(error, match="buffersize must be"):
            executor.map(calls.square, [1], buffersize=bad)


def test_a_generator_that_raises(executor):
    def numbers():
        yield from range(200)
        raise RuntimeError("no more")

    results = executor.map(calls.square, numbers())
    assert [next(results) for _ in range(200)] == [x * x for x in range(200)]
    with pytest.raises(RuntimeError, match="no more"):
        next(results)


def test_an_argument_that_cannot_be_sent(executor):
    results = executor.map(calls.square, [1, 2, threading.Lock()])
    assert [next(results), next(results)] == [1, 4]
    with pytest.raises(ipbroker.PicklingError, match="argument 1, a _thread.lock"):
        next(results)


def test_timeouts(executor):
    with pytest.raises(TimeoutError if issubclass(TimeoutError, Exception) else Exception):
        try:
            list(executor.map(calls.nap, [0, 30], timeout=0.5))
        except __import__("concurrent").futures.TimeoutError as error:
            raise TimeoutError from error
    assert executor.submit(calls.square, 3).result(25) == 9


def test_a_map_whose_results_nobody_wants_runs_all_the_same(client, tmp_path):
    def touch(directory, name):
        open(f"{directory}/{name}", "w").close()

    with client.executor() as executor:
        executor.map(touch, itertools.repeat(str(tmp_path)), range(700))
    assert len(list(tmp_path.iterdir())) == 700


def endless(read):
    while True:
        read.append(None)
        yield len(read)


def idle(client):
    """Waits until nothing is to be done any more."""
    end = time.monotonic() + 60
    while any(client.status()["tasks"][state] for state in ("ready", "running")):
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("how", ["dropped", "closed", "dropped unread"])
def test_a_map_that_never_ends_reads_no_more_when_nobody_wants_its_results(client, how):
    read = []
    executor = client.executor()
    results = executor.map(calls.square, endless(read))
    if how != "dropped unread":
        assert next(results) == 1
    if how == "closed":
        results.close()
    before = len(read)
    del results
    gc.collect()
    idle(client)
    assert len(read) == before


@pytest.mark.parametrize("held", [False, True])
def test_an_executor_that_does_not_end_says_why(client, monkeypatch, held):
    told = []
    monkeypatch.setattr("ipbroker.map.PATIENCE", 0.0)

    def numbers():
        while not told:
            yield 0

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", lambda *what, **_: told.append(str(what[0])))
        with client.executor() as executor:
            results = executor.map(calls.square, numbers())
            if not held:
                del results
                gc.collect()
    assert len(told) == 1 and "arguments of the map of square" in told[0]


def test_what_is_dropped_unread_runs_if_it_ends(client, tmp_path):
    def touch(name):
        open(f"{tmp_path}/{name}", "w").close()

    with client.executor() as executor:
        executor.map(touch, (n for n in range(700)))
        # This one, nobody can run.
        executor.map(touch, itertools.count(5000))
    client.view().map(touch, range(1000, 1700))
    client.view().map(touch, iter(list(range(2000, 2700))))
    with pytest.warns(RuntimeWarning, match="the map of .*touch: it ends after its first calls"):
        client.view().map(touch, (n for n in range(3000, 3700)))
    idle(client)
    names = {int(path.name) for path in tmp_path.iterdir()}
    assert names >= {*range(700), *range(1000, 1700), *range(2000, 2700), *range(3000, 3064)}
    assert len([name for name in names if name > 3000]) < 700


def test_a_program_ends_that_has_left_a_map_without_end(tmp_path):
    code = """
import ipbroker, calls, itertools
cluster = ipbroker.Cluster(n=1)
ex = cluster.client().executor()
left = ex.map(calls.square, (n for n in itertools.count()))
ex.map(calls.square, (n for n in itertools.count()))
print(ex.submit(calls.square, 3).result())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=os.path.dirname(__file__), capture_output=True, text=True, timeout=60)
    assert done.stdout == "9\n" and "RuntimeWarning: nobody reads the results of the map of square" in done.stderr, done.stderr


def test_what_comes_before_a_crash_is_there(client, tmp_path):
    def odd(x):
        with open(f"{tmp_path}/ran", "a") as file:
            file.write(f"{x}\n")
        if x == 70:
            os.kill(os.getpid(), signal.SIGSEGV)
        time.sleep(0.002)
        return x

    results = client.view().map(odd, range(100), chunksize=50)
    assert [next(results) for _ in range(70)] == list(range(70))
    with pytest.raises(ipbroker.EngineError, match="SIGSEGV.*while it ran .*odd"):
        next(results)
    ran = list(map(int, (tmp_path / "ran").read_text().split()))
    assert sorted(ran) == list(range(71))
    # Long lists come in parts, too.
    assert list(client.view().map(odd, range(100, 500), chunksize=400)) == list(range(100, 500))


def test_retries_are_for_each_call_whatever_travels_together(client, tmp_path):
    def second(x):
        with open(f"{tmp_path}/{x}", "a") as file:
            file.write("x")
            if file.tell() == 1:
                raise ValueError(x)
        return x

    assert list(client.view(retries=1).map(second, range(40), chunksize=20)) == list(range(40))
    assert {path.read_text() for path in tmp_path.iterdir()} == {"xx"}


def test_memory_stays_bounded(executor):
    tracemalloc.start()
    try:
        count = total = 0
        for value in executor.map(abs, range(200_000)):
            count += 1
            total += value
        assert (count, total) == (200_000, sum(range(200_000)))
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


def test_map_reduce_counts_words(client):
    def words(line):
        return [(word, 1) for word in line.split()]

    def count(group):
        word, ones = group
        return word, sum(ones)

    lines = ["a b a", "b c", "a"] * 40
    counted = dict(client.view().map_reduce(words, count, lines, map_chunksize=7, reduce_chunksize=2))
    assert counted == {"a": 120, "b": 80, "c": 40}


class Named:
    def __init__(self, name):
        self.name = name

    def __eq__(self, other):
        return isinstance(other, Named) and self.name == other.name

    def __hash__(self):
        return hash(self.name)


def test_map_reduce_finds_equal_keys_and_keeps_their_order(client):
    pairs = [("b", 1), (None, 2), (1, 3), ("a", 4), (True, 5), (1.0, 6), (("x", 1), 7), (("x", 1.0), 8), (b"b", 9), (Named("n"), 10), (Named("n"), 11), (frozenset("ab"), 12), (frozenset("ba"), 13)]
    view = client.view()
    for sizes in [(1, 1), (2, 3), (100, 100)]:
        found = view.map_reduce(lambda pair: [pair], lambda group: group[1], pairs, *sizes)
        assert found == [[1], [2], [3, 5, 6], [4], [7, 8], [9], [10, 11], [12, 13]]
    many = view.map_reduce(lambda x: [(x % 1000, x)], sum_of, range(5000), map_chunksize=100)
    assert many == [(key, sum(range(key, 5000, 1000))) for key in range(1000)]
    assert view.map_reduce(lambda x: [], sum_of, range(3)) == [] == view.map_reduce(lambda x: [], sum_of, [])
    with pytest.raises(ValueError, match="chunk sizes"):
        view.map_reduce(sum_of, sum_of, [1], 0)


def sum_of(group):
    return group[0], sum(group[1])


def test_large_values_in_a_map(executor):
    values = [bytes([at]) * 300_000 for at in range(60)]
    assert [len(value) for value in executor.map(lambda v: v + v, values)] == [600_000] * 60
