"""Parallel Python's programs: the document's own (seeds/003), and what it leaves open."""

import glob
import math
import os
import re
import subprocess
import sys
import threading

import pytest

import calls
import documents
import programs
from ipbroker.compat import pp

@pytest.fixture(scope="module")
def server():
    server = pp.Server(2)
    yield server
    server.destroy()


def test_the_documents_word_count(tmp_path):
    files = []
    for at in range(7):
        files.append(str(tmp_path / f"{at}.txt"))
        with open(files[-1], "w") as file:
            file.write(f"The map, the reduce; file {at}\n" * (at + 1) + "word%s " % chr(ord("a") + at) * 20)
    (tmp_path / "pp_mapreduce.py").write_text(programs.mapreduce())
    program = tmp_path / "count.py"
    program.write_text(programs.wordcount(files))
    done = subprocess.run([sys.executable, program], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    expected = {"the": 56, "map": 28, "reduce": 28, "file": 28, **{"word" + chr(ord("a") + at): 20 for at in range(7)}}
    assert lines.pop() == repr(sorted(expected.items()))
    shown = documents.cut(programs.PP, "Job execution statistics:", "成功").splitlines()
    assert lines[:2] == shown[:2]
    # The widths of the columns, and the words below them, are the document's.
    columns = [[len(cell) for cell in line.split("|")[:-1]] for line in (lines[2], shown[2])]
    assert columns[0] == columns[1] and re.fullmatch(r" +\d+ \| +100\.00 \| +\d+\.\d{4} \| +\d+\.\d{6} \| local", lines[2])
    words = [[re.sub(r"[\d.]+", "N", line) for line in part if line.strip()][-2:] for part in (lines, shown)]
    assert words[0] == words[1] == ["Time elapsed since server creation N", "N active tasks, N cores"]


def test_the_documents_word_count_on_hosts(lab, tmp_path):
    # Hosts share no files with this one but what is below /usr.
    files = sorted(glob.glob("/usr/lib/python3*/[a-d]*.py"))[:40]
    if not files:
        pytest.skip("there are no files that all hosts have")
    (tmp_path / "pp_mapreduce.py").write_text(programs.mapreduce())
    (tmp_path / "count.py").write_text(programs.wordcount(files, '("a:60000", "b:60000")'))
    done = subprocess.run([*lab.here, sys.executable, "count.py"], cwd=tmp_path, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert dict(eval(lines[-1]))["import"] >= len(files) / 2
    rows = [line.split("|") for line in lines[2:-4]]
    assert {row[4].strip() for row in rows} <= {"local", "a:60000", "b:60000"}
    assert sum(int(row[0]) for row in rows) >= len(files) and 99.9 < sum(float(row[1]) for row in rows) < 100.1


def sum_primes(n):
    return sum(x for x in range(2, n) if isprime(x))  # noqa: F821


def prime_by_name():
    """A function that is not to be found under its name here: depfuncs bring it."""
    there = {"__name__": "__main__"}
    exec("def isprime(n):\n    return all(n % i for i in range(2, int(math_.sqrt(n)) + 1))", there)
    return there["isprime"]


def test_functions_and_modules_are_found_by_name(server):
    job = server.submit(sum_primes, (100,), (prime_by_name(),), ("import math as math_",))
    assert job() == 1060 and job.finished
    there = {"__name__": "__main__"}
    exec("def root(x):\n    return math.sqrt(x) + len(os.path.sep)", there)
    assert server.submit(there["root"], (9,), (), ("math", "os.path"))() == 4
    assert server.submit(there["root"], (16,), globals={"math": math, "os": os})() == 5
    template = pp.Template(server, sum_primes, (prime_by_name(),), ("import math as math_",))
    assert [template.submit(n)() for n in (10, 100)] == [17, 1060]


class Adder:
    def __init__(self, base):
        self.base = base

    def add(self, x):
        return Adder(self.base + x.base)


def test_methods_and_objects_of_ones_own_classes(server):
    assert server.submit(Adder(3).add, (Adder(4),))().base == 7
    assert isinstance(server.submit(Adder(3).add, (Adder(4),))(), Adder)
    assert server.submit(map_, (calls.square, [1, 2, 3]))() == [1, 4, 9]


def map_(function, items):
    return [function(item) for item in items]


def test_callbacks_end_before_their_jobs(server):
    heard, lock = [], threading.Lock()

    def callback(*arguments):
        # Callbacks may wait for other jobs.
        assert other() == 49
        with lock:
            heard.append(arguments)

    other = server.submit(calls.square, (7,))
    for at in range(10):
        server.submit(calls.square, (at,), callback=callback, callbackargs=("square",), group="squares")
    server.wait("squares")
    assert sorted(heard) == [("square", at * at) for at in range(10)]
    server.wait()
    server.wait("no such group")


def test_what_a_function_raises_is_printed_and_the_result_is_none(server, capfd):
    job = server.submit(calls.fail, ("sum",))
    assert job() is None and job() is None
    out = capfd.readouterr().out
    assert out.startswith("An error has occured during the function execution\nTraceback") and out.count("ValueError: no sum") == 1


def test_numbers_of_engines(server):
    assert server.get_ncpus() == 2 and server.get_active_nodes() == {"local": 2}
    server.set_ncpus(1)
    assert len({server.submit(calls.pid)() for _ in range(10)}) == 1
    server.set_ncpus(3)
    assert server.get_active_nodes() == {"local": 3}
    before = server.get_stats()["local"]
    assert server.submit(calls.square, (2,))() == 4
    after = server.get_stats()["local"]
    assert (after.njobs, after.ncpus) == (before.njobs + 1, 3) and after.time > before.time
    server.set_ncpus(2)


def test_what_is_wrong_is_said(server):
    for wrong, error in [
        (lambda: pp.Server(ppservers=["a"]), "ppservers argument must be a tuple"),
        (lambda: pp.Server(ppservers=("*",)), r"'\*' names no host"),
        (lambda: pp.Server("many"), "ncpus must have 'int' type"),
        (lambda: pp.Server(-1), "ncpus must be"),
        (lambda: server.submit(calls.square, [3]), "args argument must be a tuple"),
        (lambda: server.submit("square", (3,)), "func argument must be a function"),
        (lambda: server.submit(calls.square, (3,), modules=(math,)), "tuple of strings"),
    ]:
        with pytest.raises((TypeError, ValueError), match=error):
            wrong()


def test_a_destroyed_server(caplog):
    server = pp.Server(1, secret="x", socket_timeout=10)
    assert [record.getMessage().split(" here:")[0] for record in caplog.records] == ["pp: secret has no use", "pp: socket_timeout has no use"]
    job = server.submit(calls.nap, (600,))
    server.destroy()
    with pytest.raises(pp.DestroyedServerError):
        job()
    with pytest.raises(pp.DestroyedServerError):
        server.submit(calls.square, (3,))
    server.destroy()
