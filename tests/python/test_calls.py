"""Calls: results, exceptions, pickling, futures."""

import asyncio
import concurrent.futures
import functools
import itertools
import os
import pathlib
import subprocess
import sys
import textwrap
import threading
import time

import numpy
import pytest

import calls
import ipbroker


def test_results_come_back(executor):
    assert executor.submit(pow, 2, 10).result(30) == 1024
    assert executor.submit(calls.add, 1, c=3).result(30) == 14
    assert executor.submit(lambda x: [x, {"a": x}], (1, None)).result(30) == [(1, None), {"a": (1, None)}]


def test_names_of_arguments_are_the_functions_own(client, executor):
    assert client.submit(dict, function=1, self=2).result(30) == {"function": 1, "self": 2}
    assert executor.submit(dict, fn=1, self=2).result(30) == {"fn": 1, "self": 2}


def test_a_future_is_no_argument(client, executor):
    with pytest.raises(ipbroker.PicklingError, match=r"argument 2, a ipbroker.futures.Future\): a future.*send its result\(\)"):
        executor.submit(calls.add, 1, client.submit(calls.square, 2))


def test_what_is_no_future_is_named(client):
    for wrong in [lambda: client.view(after=[3]), lambda: client.explain(3), lambda: client.view(follow=concurrent.futures.Future())]:
        with pytest.raises(TypeError, match="a future of ipbroker or an id is needed"):
            wrong()


def test_calls_run_elsewhere(executor):
    assert executor.submit(calls.pid).result(30) not in (None, os.getpid())


def test_info_tells_of_the_call(executor):
    before = time.time()
    future = executor.submit(calls.nap, 0.05)
    assert future.result(30) is None
    info = future.info
    assert info["id"] == future.id and future.id.startswith(executor.client.session)
    assert info.name == "nap" and info.status == "ok"
    assert isinstance(info.engine_id, int) and info.host
    assert before - 1 < info.submitted.timestamp() <= info.completed.timestamp() + 1
    assert 0.04 < (info.completed - info.started).total_seconds() < 10
    assert set(info) >= {"engine_id", "host", "submitted", "started", "completed", "stdout", "stderr"}


def test_what_is_printed_comes_with_the_future(executor):
    future = executor.submit(calls.say, "hello")
    assert future.result(30) == 5
    assert (future.info.stdout, future.info.stderr) == ("hello\n", "HELLO\n")


def test_exceptions_come_back_as_themselves(executor):
    with pytest.raises(ValueError, match="no value") as caught:
        executor.submit(calls.fail).result(30)
    cause = caught.value.__cause__
    assert isinstance(cause, ipbroker.RemoteTraceback)
    assert "calls.py" in str(cause) and "in fail" in str(cause)
    with pytest.raises(calls.Custom) as caught:
        executor.submit(calls.fail, "custom").result(30)
    assert caught.value.code == 7

    def by_value():
        raise KeyError("here")  # in this line

    with pytest.raises(KeyError) as caught:
        executor.submit(by_value).result(30)
    assert __file__ in str(caught.value.__cause__) and "# in this line" in str(caught.value.__cause__)


def test_an_exception_class_that_only_the_engine_knows(executor):
    def there():
        import sys
        import types

        module = types.ModuleType("only_there")
        exec("class Odd(Exception): pass", module.__dict__)
        module.Odd.__module__ = "only_there"
        sys.modules["only_there"] = module
        raise module.Odd("strange")

    with pytest.raises(ipbroker.RemoteError, match="Odd: strange") as caught:
        executor.submit(there).result(30)
    assert caught.value.ename == "Odd" and "Odd" in "".join(caught.value.traceback)


class Wanting(Exception):
    def __init__(self, code, *, detail):
        super().__init__(f"{code}: {detail}")
        self.code, self.detail = code, detail


def test_an_exception_that_is_made_from_other_arguments(executor):
    def fail(kind):
        raise kind(3, detail="no disk")

    class Local(Wanting):
        pass

    for kind in [Wanting, Local]:
        for error in [executor.submit(fail, kind).exception(30), raised(executor.map(fail, [kind] * 3, chunksize=3))]:
            assert type(error) is kind and (error.code, error.detail, str(error)) == (3, "no disk", "3: no disk")
            assert "in fail" in str(error.__cause__)


def raised(results):
    with pytest.raises(Exception) as caught:
        list(results)
    return caught.value


def test_what_cannot_be_sent_is_named_at_once(cluster, executor):
    lock = threading.Lock()
    with pytest.raises(ipbroker.PicklingError, match="captures 'cluster'.*a cluster cannot be sent"):
        executor.submit(lambda: cluster)
    with pytest.raises(ipbroker.PicklingError, match="captures 'lock'.*_thread.lock"):
        executor.submit(lambda: lock)
    with pytest.raises(ipbroker.PicklingError, match="argument 2, a _thread.lock"):
        executor.submit(calls.add, 1, lock)
    with pytest.raises(ipbroker.PicklingError, match=r"\['deep'\], a _thread.lock"):
        executor.submit(calls.square, {"deep": lock})
    with pytest.raises(TypeError, match="not callable"):
        executor.submit(3)
    for name in ("ls -l", "len"):
        with pytest.raises(TypeError, match="a function is given itself, not its name; .* client.run"):
            executor.submit(name, [])
        with pytest.raises(TypeError, match="a function is given itself, not its name"):
            executor.map(name, [[]])


def test_a_result_that_cannot_be_sent_is_named(executor):
    with pytest.raises(ipbroker.PicklingError, match="lock"):
        executor.submit(threading.Lock).result(30)

    async def later():
        pass

    with pytest.raises(ipbroker.PicklingError, match="a coroutine, .*asyncio.run"):
        executor.submit(later).result(30)
    with pytest.raises(ipbroker.PicklingError, match="a generator, .*return a list"):
        executor.submit(lambda: (x for x in "ab")).result(30)
    assert executor.submit(calls.square, 3).result(30) == 9


class Odd:
    def __reduce__(self):
        return int, ("no number",)


def test_a_result_that_cannot_be_read_here_says_so(executor):
    for result in (executor.submit(Odd).result, executor.map(lambda _: Odd(), [1, 2]).__next__):
        with pytest.raises(ipbroker.RemoteError, match="the result of .* cannot be unpickled here: ValueError: .*no number"):
            result()


def test_what_is_nested_too_deeply_is_named(executor):
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ipbroker.PicklingError, match=r"argument 1, a builtins.list \(\[0\], a builtins.list"):
        executor.submit(len, deep)


@pytest.mark.parametrize("ending", ["sys.exit(3)", "raise KeyboardInterrupt", "raise SystemExit"])
def test_ends_that_are_no_end_of_the_engine(executor, ending):
    def end():
        import sys  # noqa: F401

        exec(ending)

    error = executor.submit(end).exception(30)
    assert isinstance(error, (SystemExit, KeyboardInterrupt, ipbroker.RemoteError))
    assert executor.submit(calls.square, 3).result(30) == 9


def test_a_function_sees_what_it_refers_to_as_it_is_when_it_is_submitted(executor):
    text = """
        factor = 2
        table = [1]
        def f(x):
            return x * factor + sum(table)
    """
    there = {"__name__": "__main__"}
    exec(textwrap.dedent(text), there)
    assert executor.submit(there["f"], 10).result(30) == 21
    there["factor"] = 3
    assert executor.submit(there["f"], 10).result(30) == 31
    there["table"].append(100)
    assert executor.submit(there["f"], 10).result(30) == 131


def test_the_same_function_is_pickled_once(monkeypatch):
    from ipbroker import _pickle

    there = {"__name__": "__main__"}
    exec("def g(x):\n    return len(str(x))", there)
    assert _pickle.pickled(there["g"]) is _pickle.pickled(there["g"])
    assert _pickle.pickled(there["g"]).python == _pickle.PYTHON
    assert _pickle.pickled(calls.square) is _pickle.pickled(calls.square)
    assert _pickle.pickled(calls.square).python is None


def test_a_function_goes_as_it_is_now(executor):
    class Base:
        rate = 1

    class Rates(Base):
        pass

    numbers = [1]
    last = numbers.__getitem__

    def attribute():
        return attribute.rate

    attribute.rate = 1
    functions = [lambda: Base.rate, lambda: Rates.rate, lambda: Rates().rate, lambda: last(-1), attribute, lambda: attribute.rate, lambda x=1: x, lambda *, x=1: x, lambda: 1]
    assert [executor.submit(function).result(30) for function in functions] == [1] * len(functions)
    assert executor.submit(Rates).result(30).rate == 1
    Base.rate = attribute.rate = 2
    numbers.append(2)
    functions[-3].__defaults__ = (2,)
    functions[-2].__kwdefaults__["x"] = 2
    functions[-1].__code__ = (lambda: 2).__code__
    assert [executor.submit(function).result(30) for function in functions] == [2] * len(functions)
    assert list(executor.map(lambda _: Rates.rate, range(3))) == [2] * 3


class Tally:
    def __init__(self):
        self.count = 0

    def up(self, by=1):
        self.count += by
        return self.count

    __call__ = up


def test_no_call_finds_what_another_has_changed(client, executor):
    def count(items, item):
        items.append(item)
        return len(items)

    grown = functools.partial(count, [])
    for function, argument in ((Tally().up, 1), (Tally(), 1), (functools.partial(Tally().up), 1), (grown, 1), ([].__iadd__, [1])):
        result = [1] if argument == [1] else 1
        assert [executor.submit(function, argument).result(30) for _ in range(6)] == [result] * 6
        assert [future.result(30) for future in [executor.submit(function, argument) for _ in range(200)]] == [result] * 200
        for chunksize in (None, 10):
            assert list(executor.map(function, [argument] * 500, chunksize=chunksize)) == [result] * 500
    assert list(executor.map(count, itertools.repeat([]), range(2000))) == [1] * 2000
    assert list(executor.map(count, itertools.repeat([]), range(20), chunksize=10)) == [*range(1, 11)] * 2
    shared = functools.cache(lambda key: [key])
    results = list(executor.map(shared, [1] * 500))
    results[-1].append(2)
    assert results == [[1]] * 499 + [[1, 2]]
    # A function stays, of single calls and of those that travel together, and so does what it has cached.
    cached = functools.cache(lambda key: (key, os.getpid(), time.time()))
    assert len(set(executor.map(cached, ["key"] * 500))) <= 4
    assert list(executor.map(functools.partial(pow, 2), range(4))) == [1, 2, 4, 8]


def test_a_class_that_comes_back_is_what_it_is_here(executor):
    class Point:
        made = []

        def name(self):
            return "old"

    class Wrong(Exception):
        def name(self):
            return "old"

    def make(fail):
        if fail:
            raise Wrong
        return Point()

    def there():
        class Theirs:
            value = 1

        return Theirs

    one, bad, some = executor.submit(make, False), executor.submit(make, True), executor.map(make, [False] * 3)
    assert one.exception(30) is None and type(next(some)) is Point
    made = Point.made
    made.append(1)
    Point.name = Wrong.name = lambda self: "new"
    assert one.result().name() == next(some).name() == executor.submit(make, False).result(30).name() == "new"
    assert Point.made is made == [1]
    error = bad.exception(30)
    assert type(error) is Wrong and error.name() == "new"
    kind = executor.submit(there).result(30)
    assert kind.value == 1 and executor.submit(lambda kind: (setattr(kind, "value", 2), kind)[1], kind).result(30) is kind and kind.value == 2


def test_what_cloudpickle_is_told_to_take_by_value_goes_by_value(client, monkeypatch, tmp_path):
    import cloudpickle

    (tmp_path / "of_this_host.py").write_text("FACTOR = 3\n\ndef times(x):\n    return x * FACTOR\n\nclass Point:\n    x = 4\n")
    monkeypatch.syspath_prepend(tmp_path)
    import of_this_host

    view = client.view(timeout=0.5)
    with pytest.raises(ipbroker.TaskTimeout, match="of_this_host"):
        view.submit(of_this_host.times, 2).result(30)
    cloudpickle.register_pickle_by_value(of_this_host)
    try:
        assert view.submit(of_this_host.times, 2).result(30) == 6
        assert view.submit(lambda point: point.x, of_this_host.Point()).result(30) == 4
    finally:
        cloudpickle.unregister_pickle_by_value(of_this_host)
    with pytest.raises(ipbroker.TaskTimeout, match="of_this_host"):
        view.submit(of_this_host.times, 2).result(30)


def test_arrays_go_and_come_and_may_be_written_to(executor):
    array = numpy.arange(3_000_000, dtype=float)
    result = executor.submit(lambda a: a * 2, array).result(60)
    assert numpy.array_equal(result, array * 2)
    result[0] = 5
    shapes = executor.submit(lambda a, b: (a.shape, b.sum()), array.reshape(1000, -1), b=array[::2]).result(60)
    assert shapes == ((1000, 3000), array[::2].sum())


def in_place(array):
    child = os.fork()
    if not child:
        array[:] = 7
        os._exit(0)
    os.waitpid(child, 0)
    array += 1
    return array


def test_a_large_argument_is_the_calls_own(executor):
    """It may write to it, and so may a process that it forks: neither the client's array nor the call's own is changed by another."""
    for shape in (numpy.arange(3_000_000, dtype=float), numpy.asfortranarray(numpy.arange(2_000_000).reshape(2, -1))):
        before = shape.copy()
        result = executor.submit(in_place, shape).result(60)
        assert numpy.array_equal(shape, before) and numpy.array_equal(result, before + 1)
        assert result.flags.writeable and result.flags.f_contiguous == shape.flags.f_contiguous
    fixed = before.view()
    fixed.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        executor.submit(in_place, fixed).result(60)



def test_futures_can_be_awaited(client):
    async def main():
        view = client.view()
        both = await asyncio.gather(view.submit(calls.square, 3), view.submit(calls.square, 4))
        with pytest.raises(ValueError):
            await view.submit(calls.fail)
        loop = asyncio.get_running_loop()
        with client.executor() as executor:
            return [*both, await loop.run_in_executor(executor, calls.square, 5)]

    assert asyncio.run(main()) == [9, 16, 25]


def test_what_functools_cache_has_made_goes_by_value(executor):
    @functools.cache
    def fib(n):
        return n if n < 2 else fib(n - 1) + fib(n - 2)

    @functools.lru_cache(maxsize=7, typed=True)
    def size():
        return size.cache_parameters()

    class Sizes:
        @functools.cached_property
        def small(self):
            return [7]

        @functools.lru_cache
        def larger(self, by):
            return self.small[0] + by

    sizes = executor.submit(lambda sizes: (sizes.small, sizes)[1], Sizes()).result(30)
    assert vars(sizes) == {"small": [7]} and sizes.small is sizes.small
    assert list(executor.map(sizes.larger, [1, 2])) == [8, 9]
    assert executor.submit(fib, 80).result(30) == 23416728348467685
    assert list(executor.map(fib, [10, 20])) == [55, 6765]
    assert executor.submit(lambda: fib(30)).result(30) == 832040
    assert executor.submit(size).result(30) == {"maxsize": 7, "typed": True}


def test_what_singledispatch_has_made_goes_by_value(executor):
    @functools.singledispatch
    def shown(value):
        """Tells what it is."""
        return repr(value)

    @shown.register(list)
    def _(value):
        return "".join(map(shown, value))

    class Kinds:
        @functools.singledispatchmethod
        def of(self, value):
            return "other"

        @of.register
        def _(self, value: int):
            return "int"

    assert executor.submit(shown, [1, "a", [2]]).result(30) == "1'a'2"
    assert list(executor.map(shown, [[1], 2])) == ["1", "2"]
    there = executor.submit(lambda: (shown.__name__, shown.__doc__, shown.__wrapped__(3))).result(30)
    assert there == ("shown", "Tells what it is.", "3")
    kinds = executor.submit(lambda kinds: (kinds.of(3), kinds), Kinds()).result(30)
    assert (kinds[0], kinds[1].of(3), kinds[1].of("")) == ("int", "int", "other")

    def later():
        made = functools.singledispatch(lambda value: 1)
        made.register(str, len)
        return made

    made = executor.submit(later).result(30)
    assert (made(3), made("abc")) == (1, 3)


def test_a_callback_does_not_wait_for_what_it_holds_up(client, executor):
    heard, ended = [], threading.Event()

    def ask(_):
        for wait in [executor.submit(calls.square, 3).result, executor.map(calls.square, [3]).__next__, client.run(["true"]).wait]:
            try:
                heard.append(wait())
            except RuntimeError as error:
                heard.append("a callback cannot wait for it" in str(error))
        ended.set()

    executor.submit(calls.nap, 0.2).add_done_callback(ask)
    assert ended.wait(30) and heard == [True] * 3


def test_what_a_callback_raises_holds_nothing_up(executor, capfd):
    gate = executor.submit(calls.nap, 0.2)
    gate.add_done_callback(lambda _: sys.exit("from a callback"))
    gate.result(30)
    assert executor.submit(calls.square, 3).result(30) == 9
    assert "from a callback" in capfd.readouterr().err


def test_callbacks_wait_and_as_completed(executor):
    heard = []
    futures = [executor.submit(calls.nap, 0.2 - at / 20, at) for at in range(4)]
    for future in futures:
        future.add_done_callback(heard.append)
    done, left = concurrent.futures.wait(futures, 60)
    assert len(done) == 4 and not left
    assert {future.result() for future in concurrent.futures.as_completed(futures, 60)} == {0, 1, 2, 3}
    assert len(heard) == 4


def test_calls_that_have_ended_before_anybody_asks(executor):
    good, bad = executor.submit(calls.square, 3), executor.submit(calls.square, None)
    wait_until(lambda: good.done() and bad.done())
    assert concurrent.futures.wait([good, bad], 0).done == {good, bad}
    assert good.result(0) == 9 and good.exception(0) is None
    assert isinstance(bad.exception(0), TypeError)
    assert not (good.cancel() or good.cancelled() or good.running())
    heard = []
    good.add_done_callback(heard.append)
    assert heard == [good]


def test_a_running_call_is_cancelled(executor):
    future = executor.submit(calls.nap, 600)
    others = [executor.submit(calls.nap, 600) for _ in range(5)]
    wait_until(lambda: "has had it" in executor.client.explain(future))
    begin = time.monotonic()
    assert all(each.cancel() for each in [future, *others])
    assert future.cancelled() and future.done()
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(30)
    # The engines are free again, long before the naps are over.
    assert executor.submit(calls.square, 2).result(60) == 4
    assert time.monotonic() - begin < 60
    done = executor.submit(calls.square, 2)
    assert done.result(60) == 4 and not done.cancel()


def test_what_runs_says_so(client, executor, tmp_path):
    go = str(tmp_path / "go")

    def wait():
        while not os.path.exists(go):
            time.sleep(0.01)

    futures = [executor.submit(wait) for _ in range(100)]
    wait_until(lambda: futures[0].running())
    wait_until(lambda: sum(future.running() for future in futures) == 2)
    open(go, "w").close()
    concurrent.futures.wait(futures, 60)
    stopped = executor.submit(time.sleep, 600)
    stopped.cancel()
    with client.executor(tags=["nowhere"], timeout=1) as nowhere:
        waiting = nowhere.submit(pow, 2, 3)
        assert not waiting.running()
    assert not any(future.running() for future in [*futures, stopped, waiting])


def test_an_import_is_not_stopped_in_the_middle(client, tmp_path):
    """A package of which a part was imported, and the rest not, could never be imported again in that interpreter."""
    package = tmp_path / "slow_package"
    package.mkdir()
    mark = tmp_path / "begun"
    (package / "__init__.py").write_text(f"from .part import *\nopen({str(mark)!r}, 'x').close()\nfor _ in range(10):\n    time.sleep(0.01)\nvalue = part.seven\n")
    (package / "part.py").write_text("import time\nseven = 7\n")
    view = client.view(targets=[client.engines[0]["uuid"]])

    def use(forever):
        import sys
        import time

        sys.path.insert(0, str(tmp_path))
        try:
            import slow_package

            while forever:
                time.sleep(0.01)
            return slow_package.value, os.getpid()
        finally:
            sys.path.remove(str(tmp_path))

    pid = view.submit(os.getpid).result(30)
    stopped = view.submit(use, True)
    wait_until(mark.exists)
    assert stopped.cancel()
    assert view.submit(use, False).result(30) == (7, pid)


@pytest.mark.parametrize("ending, code", [("return 'child'", 0), ("raise ValueError('child')", 1), ("sys.exit(5)", 5)])
def test_a_process_that_a_call_has_forked_answers_nothing(client, ending, code):
    view = client.view(targets=[client.engines[0]["uuid"]])
    there = {"os": os, "sys": sys, "__name__": "__main__"}
    exec(f"def fork():\n    child = os.fork()\n    if child:\n        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n    {ending}", there)
    assert view.submit(there["fork"]).result(30) == code
    assert list(view.map(calls.square, range(200), timeout=60)) == [n * n for n in range(200)]


def test_what_others_abort_is_cancelled(executor):
    future = executor.submit(calls.nap, 600)
    executor.client.abort(future)
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(60)
    assert future.cancelled()


def test_a_call_is_told_what_it_was_granted(client):
    def told():
        names = ["IPBROKER_CPUS", "OMP_NUM_THREADS", "IPBROKER_NODES"]
        file = os.environ.get("IPBROKER_NODEFILE")
        return [os.environ.get(name) for name in names], file and pathlib.Path(file).read_text().split()

    plain = client.submit(told).result(30)
    (cpus, threads, nodes), hosts = client.view(cpus=1).submit(told).result(30)
    assert len(cpus.split(",")) == 1 and threads == "1" and (nodes, hosts) == (None, None)
    (_, _, nodes), hosts = client.view(nodes=1).submit(told).result(30)
    assert nodes == "1" and hosts == client.engines[0]["host"][:1]
    for again in client.view().map(lambda _: told(), range(8)):
        assert again == plain
    for bad, error in [(0, ValueError), (1.5, TypeError), (10**9, ValueError)]:
        with pytest.raises(error, match="option nodes"):
            client.view(nodes=bad)


def test_views_have_options(client):
    view = client.view(retries=1)
    other = view(priority=3)
    assert view.options == {"retries": 1} and other.options == {"retries": 1, "priority": 3}
    assert other.submit(calls.square, 4).result(30) == 16
    with pytest.raises(TypeError, match="unknown option \"retry\""):
        client.view(retry=3)
    with pytest.raises(TypeError, match="retries"):
        client.view(retries="many")
    assert client.view(cpus=1, memory="1M").submit(calls.square, 4).result(30) == 16
    with pytest.raises(ValueError, match="cpus: must be"):
        client.view(cpus="some")
    for option, bad, error, what in [
        ("timeout", -1, ValueError, "a number of seconds from 0, not -1"),
        ("timeout", float("inf"), ValueError, "not inf"),
        ("retry_delay", float("nan"), ValueError, "not nan"),
        ("prefer_wait", "1", TypeError, "not '1'"),
        ("retries", -1, ValueError, "a whole number from 0, not -1"),
        ("retries", 1.5, TypeError, "not 1.5"),
        ("priority", 1 << 40, ValueError, "not 1099511627776"),
        ("host", 3, TypeError, "a string, or a list of strings, not 3"),
        ("tags", [3], TypeError, r"not \[3\]"),
        ("targets", client.engines[0], TypeError, "a string, or a list of strings, not {'id'"),
        ("limit", 3, TypeError, "a dict like .*, not 3"),
        ("limit", {"time": -1}, ValueError, "time: must be a number of seconds from 0, not -1"),
        ("require", ["numpy"], TypeError, "a dict like"),
    ]:
        with pytest.raises(error, match=f"option {option}: .*{what}"):
            client.view(**{option: bad})
    assert client.view(any=[{"gpus": 64}, {"cpus": 0.5, "resources": {"none": 0}}]).submit(calls.square, 3).result(30) == 9
    for bad, error, what in [([], ValueError, "without an alternative"), (3, TypeError, "True or False"), ([{"any": True}], TypeError, "alternative 1 has \"any\""), ([{"cpus": 0}], ValueError, "cpus: must be")]:
        with pytest.raises(error, match=what):
            client.view(any=bad)
    first = view.submit(calls.nap, 0.3, 1)
    second = client.view(after=[first]).submit(calls.square, 5)
    assert second.result(60) == 25
    assert second.info.started >= first.info.completed


def test_what_nobody_can_run_says_so(client):
    view = client.view(tags=["no-such-tag"], timeout=0.5)
    with pytest.raises((ipbroker.TaskTimeout, ipbroker.ImpossibleDependency)):
        view.submit(calls.square, 1).result(60)
    failed = client.view().submit(calls.fail)
    with pytest.raises(ipbroker.ImpossibleDependency):
        client.view(after=failed).submit(calls.square, 1).result(60)


def test_a_module_that_no_engine_has(client, tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("def f():\n    return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    import only_here

    future = client.view(timeout=3).submit(only_here.f)
    wait_until(lambda: future.done() or "No module named 'only_here'" in client.explain(future))
    with pytest.raises((ipbroker.TaskTimeout, ipbroker.ImpossibleDependency)):
        future.result(60)


def test_what_is_cancelled_at_once_never_runs(client, tmp_path):
    # So many that what is submitted now waits for company.
    naps = [client.submit(calls.nap, 5) for _ in range(40)]
    files = [tmp_path / str(number) for number in range(40)]
    for file in files:
        assert client.submit(pathlib.Path.touch, file).cancel()
    for nap in naps:
        nap.cancel()
    assert [client.submit(calls.square, n).result(60) for n in range(20)] == [n * n for n in range(20)]
    assert not any(file.exists() for file in files)


def test_threads_share_a_client(client):
    results = [None] * 8

    def work(at):
        results[at] = [client.submit(calls.square, n).result(60) for n in range(at, at + 20)]

    threads = [threading.Thread(target=work, args=(at,)) for at in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [[n * n for n in range(at, at + 20)] for at in range(8)]


def test_questions(client):
    assert client.wait_for_engines(2, 10) == 2
    with pytest.raises(TimeoutError, match="2 of 3"):
        client.wait_for_engines(3, 0.3)
    with pytest.raises(ValueError, match="^n is at least 0$"):
        client.wait_for_engines(-1)
    engines = client.engines
    assert len(engines) == 2 and all("python" in engine["tags"] for engine in engines)
    assert "<table" in engines._repr_html_() and "<table" in client._repr_html_()
    future = client.submit(calls.square, 2)
    future.result(30)
    assert client.explain(future)
    assert client.status()["python_engines"] == 2 and client.stats()["nodes"]
    report = client.report([future])
    assert repr(report) == "<ipbroker.Report of 1 task>" and report.html.rstrip().endswith("</html>")
    assert "<iframe sandbox srcdoc=" in report._repr_html_() and "<html" not in report._repr_html_()
    with pytest.raises(ipbroker.IpbrokerError, match="^the controller has no record of nonsense"):
        client.report("nonsense")
    with pytest.raises(ValueError, match="no ids"):
        client.report([])
    with pytest.raises(ipbroker.PicklingError, match="current_client"):
        client.submit(calls.square, client)


def wait_until(there, seconds=60):
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


@pytest.mark.parametrize("cancel", [False, True])
def test_submit_races_with_shutdown(client, cancel):
    """What is submitted is refused, or ends: none hangs, and none is missed by whoever waits."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for at in range(60):
            executor, futures, errors, begin = client.executor(), [], [], threading.Barrier(2)

            def submit(executor=executor, futures=futures, errors=errors, begin=begin):
                begin.wait(60)
                try:
                    while True:
                        futures.append(executor.submit(calls.square, 3))
                except BaseException as error:
                    errors.append(str(error))

            thread = threading.Thread(target=submit)
            thread.start()
            begin.wait(60)
            while len(futures) < at % 20:
                time.sleep(0)
            executor.shutdown(cancel_futures=cancel)
            missed = [future for future in list(futures) if not future.done()]
            thread.join(60)
            assert errors == ["cannot schedule new futures after shutdown"] and not missed
            assert all(future.cancelled() or future.result(0) == 9 for future in futures)
    finally:
        sys.setswitchinterval(before)
