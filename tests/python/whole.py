"""A program over the whole native API, for test_versions.py: it needs nothing but the package, and asserts what it sees."""

import array
import asyncio
import concurrent.futures
import contextlib
import io
import multiprocessing
import os
import pickle
import sys

import ipbroker


class Odd(Exception):
    """Known by value only."""


def add(a, b=10, *, c=100):
    return a + b + c


def fail(x):
    raise Odd(x)


def say(text):
    print(text)
    print(text.upper(), file=sys.stderr)
    return len(text)


def fib(n):
    client = ipbroker.current_client()
    return n if n < 2 else sum(future.result() for future in [client.submit(fib, n - 1), client.submit(fib, n - 2)])


def tree(depth):
    return 1 if depth == 0 else sum(ipbroker.current_client().view().map(tree, [depth - 1] * 2))


def in_a_process(file):
    with ipbroker.Client(file=file) as client:
        return client.submit(pow, 3, 2).result(60)


def calls(client, executor):
    assert executor.submit(add, 1, c=3).result(60) == 14
    assert executor.submit(lambda x: [x, {"a": x}], (1, None)).result(60) == [(1, None), {"a": (1, None)}]
    future = executor.submit(os.getpid)
    assert future.result(60) != os.getpid() and future.info.status == "ok" and future.info.started <= future.info.completed
    assert list(executor.map(abs, range(-3000, 0))) == list(range(3000, 0, -1))
    assert list(executor.map(lambda x: -x, range(100), chunksize=7)) == [-x for x in range(100)]
    view = client.view(retries=1)
    assert sorted(view.map_unordered(abs, range(50))) == list(range(50))
    assert list(view.starmap(pow, [(2, 3), (3, 2)])) == [8, 9]
    assert dict(view.map_reduce(lambda line: [(word, 1) for word in line.split()], lambda group: (group[0], sum(group[1])), ["a b a", "b"])) == {"a": 2, "b": 2}
    waiting = client.view(tags=["nowhere"]).submit(abs, 1)
    assert waiting.cancel() and waiting.cancelled()
    done, left = concurrent.futures.wait([executor.submit(add, 1), executor.submit(add, 2)], 60)
    assert sorted(each.result() for each in done) == [111, 112] and not left
    assert repr(future) and repr(client) and repr(executor) and repr(view) and len(client.engines) == 2 and client.status() and client.explain(future)


def exceptions(executor):
    for call, kind, words in [(lambda: executor.submit(fail, "seven"), Odd, "in fail"), (lambda: executor.submit(divmod, 1, 0), ZeroDivisionError, "division")]:
        try:
            call().result(60)
        except kind as error:
            assert isinstance(error.__cause__, ipbroker.RemoteTraceback) and words in str(error.__cause__)
        else:
            raise AssertionError("nothing was raised")
    results = executor.map(lambda x: 1 // (x - 5), range(10))
    assert [next(results) for _ in range(5)] == [-1, -1, -1, -1, -1]
    try:
        next(results)
    except ZeroDivisionError:
        pass
    try:
        executor.submit(add, sys._getframe())
    except ipbroker.PicklingError as error:
        assert "argument 1, a builtins.frame" in str(error)
    else:
        raise AssertionError("nothing was raised")


def arrays(executor):
    numbers = array.array("d", range(100_000))
    assert executor.submit(lambda a: a * 2, numbers).result(60) == numbers * 2
    # Outside of the pickle, both ways.
    data = bytearray(range(256)) * 10_000
    back = executor.submit(lambda a: pickle.PickleBuffer(bytearray(a)[::-1]), pickle.PickleBuffer(data)).result(60)
    assert bytes(back) == data[::-1]


def output(executor):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        future = executor.submit(say, "hello")
        assert future.result(60) == 5
    assert (out.getvalue(), err.getvalue()) == ("hello\n", "HELLO\n") == (future.info.stdout, future.info.stderr)


async def awaited(client, executor):
    both = await asyncio.gather(client.submit(pow, 2, 3), client.submit(pow, 3, 2))
    return [*both, await asyncio.get_running_loop().run_in_executor(executor, pow, 2, 5)]


def forked(client):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, b"%d" % client.submit(pow, 7, 2).result(60))
        client.close()
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as stream:
        text = stream.read()
    assert os.waitpid(child, 0)[1] == 0 and text == b"49"


def main():
    with ipbroker.Cluster(n=2) as cluster:
        client = cluster.client()
        with client.executor() as executor:
            calls(client, executor)
            exceptions(executor)
            arrays(executor)
            output(executor)
            assert asyncio.run(awaited(client, executor)) == [8, 9, 32]
        assert client.submit(fib, 6).result(60) == 8 and client.submit(tree, 4).result(60) == 16
        jobs = client.run([{"cmd": "echo $((6*7))"}, "exit 7"], capture=100)
        assert jobs.wait(60) and jobs[0]["result"]["stdout"] == "42\n" and jobs.failed == [jobs[1]]
        forked(client)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply(in_a_process, (client.connection_file,)) == 9
        assert client.submit(abs, -1).result(60) == 1
    print("all is well")


if __name__ == "__main__":
    main()
