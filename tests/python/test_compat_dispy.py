"""dispy: the document's program, and what it leaves open."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

import calls
import documents
import ipbroker
import ipbroker.compat.dispy as dispy
import programs
from ipbroker.cluster import program

DOCUMENT = documents.text("002")


def test_the_document(tmp_path):
    (tmp_path / "program.py").write_text(programs.dispy())
    done = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    shown = documents.between(DOCUMENT, "что-то типа:\n", "\n|")
    assert like(shown.replace("\n()\n", "\n")).match(done.stdout), done.stdout
    assert re.search(r"^ 127\.0\.0\.1 \(localhost\) +\| +\d+ \| +5 \| +\d+\.\d{3} \| +\d+\.\d{3}$", done.stdout, re.M)


def like(shown):
    """What the document shows: the same, but for host names, numbers and blanks."""
    pattern = re.escape(shown).replace("127\\.0\\.0\\.1", "ADDRESS")
    pattern = re.sub(r"\d+(\\\.\d+)?", lambda found: r"\d+\.\d+" if found.group(1) else r"\d+", pattern)
    pattern = re.sub(r"(\\ |\\\n|\n)+", r"\\s+", pattern)
    return re.compile(pattern.replace(r"localhost\s+executed", r"\S+\s+executed").replace("ADDRESS", r"127\.0\.0\.1"))


@pytest.fixture(scope="module")
def add():
    with dispy.JobCluster(calls.add, nodes=[("localhost", None, 2)]) as cluster:
        yield cluster


def test_jobs(add):
    before = time.time()
    job = add.submit(1, c=3)
    assert job() == 14 and job.result == 14 and job.status == dispy.DispyJob.Finished
    assert (job.stdout, job.stderr, job.exception, job.ip_addr) == ("", "", None, "127.0.0.1")
    assert before - 1 < job.submit_time <= job.start_time + 1 < job.end_time + 1.001
    assert add.submit_job_id("me", 1).id == "me" and isinstance(add.submit(1).id, int)
    assert add.wait(60) and add.status().jobs_pending == 0
    (node,) = add.status().nodes
    assert (node.ip_addr, node.name, node.cpus) == ("127.0.0.1", "localhost", 2) and node.jobs_done == 3
    assert add.submit_node(node, 5)() == add.submit_node("localhost", 5)() == 115


def test_exceptions(add):
    job = add.submit(1, "two")
    assert job() is None and job.status == dispy.DispyJob.Terminated
    assert "in add" in job.exception and "TypeError: unsupported operand" in job.exception
    with pytest.raises(ipbroker.PicklingError):
        add.submit(threading.Lock())
    assert add.wait(60)


def test_the_end_of_an_interpreter_names_the_function():
    with dispy.JobCluster(os._exit) as cluster:
        job = cluster.submit(3)
        job()
    assert job.status == dispy.DispyJob.Abandoned and job.exception.endswith("by exit code 3 while it ran _exit\n")


def test_what_is_printed_comes_with_the_job(capfd):
    with dispy.JobCluster(calls.say, nodes="localhost") as cluster:
        job = cluster.submit("hello")
        assert job() == 5 and (job.stdout, job.stderr) == ("hello\n", "HELLO\n")
    assert cluster.status().jobs_pending == 0 and cluster.close()
    assert capfd.readouterr().out == ""


def test_cancel_stops_a_running_job(tmp_path):
    def compute(place):
        open(place, "w").close()
        time.sleep(600)

    with dispy.JobCluster(compute, nodes=[("localhost", None, 1)]) as cluster:
        running, waiting = cluster.submit(tmp_path / "one"), cluster.submit(tmp_path / "two")
        wait_until((tmp_path / "one").exists)
        assert not cluster.wait(0) and not cluster.close(timeout=0)
        assert cluster.cancel(waiting) == 0 and cluster.cancel(running) == 0
        assert running() is None and waiting.status == running.status == dispy.DispyJob.Cancelled
        assert cluster.cancel(running) == -1
        cluster.submit(tmp_path / "three")
        assert cluster.close(terminate=True)
    assert not (tmp_path / "two").exists()


def test_callbacks():
    seen, gate = [], threading.Event()

    def callback(job):
        if job.id == 0:
            gate.wait(60)
            raise ValueError("a callback's own fault")
        seen.append((job.id, job.result, threading.current_thread() is threading.main_thread()))

    with pytest.MonkeyPatch.context() as patch:
        faults = []
        patch.setattr(sys, "excepthook", lambda *fault: faults.append(fault))
        with dispy.JobCluster(calls.square, nodes=["localhost"], callback=callback) as cluster:
            jobs = [cluster.submit_job_id(n, n) for n in range(6)]
            # Results do not wait for a slow callback, but `wait` does.
            assert [job() for job in jobs] == [0, 1, 4, 9, 16, 25]
            assert not cluster.wait(0)
            gate.set()
            assert cluster.wait(60)
            assert sorted(seen) == [(n, n * n, False) for n in range(1, 6)]
    assert [kind for kind, _, _ in faults] == [ValueError]


def test_programs(tmp_path):
    path = tmp_path / "prog"
    path.write_text("#!/bin/sh\necho $# $2; cat data; echo wrong >&2; exit $1\n")
    path.chmod(0o755)
    (tmp_path / "data").write_text("42\n")
    with dispy.JobCluster(str(path), nodes=["localhost"], depends=[str(tmp_path / "data")]) as cluster:
        job = cluster.submit(3, "a  b")
        assert job() == 3 and (job.stdout, job.stderr, job.exception) == ("2 a b\n42\n", "wrong\n", None)
        assert job.status == dispy.DispyJob.Finished and cluster.name == "prog"
    (tmp_path / "prog.py").write_text("import sys; print(sys.argv[1])")
    with dispy.JobCluster(str(tmp_path / "prog.py"), nodes=["localhost"]) as cluster:
        job = cluster.submit(7)
        assert job() == 0 and job.stdout == "7\n"


def test_depends(tmp_path, monkeypatch):
    (tmp_path / "helper.py").write_text("def f(x):\n    return x + 1\n")
    (tmp_path / "words").write_text("a b")
    (tmp_path / "ours.py").write_text("def twice(x):\n    return 2 * x\ndef compute(x):\n    import helper\n    return twice(helper.f(x)), open('words').read(), dispy_node_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    import helper
    import ours

    monkeypatch.undo()
    with dispy.JobCluster(ours.compute, nodes=["localhost"], depends=[helper, ours.twice, str(tmp_path / "words")]) as cluster:
        result = cluster.submit(1)()
    assert result[:2] == (4, "a b") and result[2]


def test_what_a_job_depends_on_is_found_by_its_name(tmp_path):
    def twice(x):
        return 2 * x

    def negative(x):
        return -x

    def compute(name, x, *files):
        known = [each for each in ("twice", "negative") if each in globals()]
        return globals()[name](x), known, [open(file).read() for file in files]

    (tmp_path / "words").write_text("a b")
    with dispy.JobCluster(compute, nodes=["localhost"], depends=[twice]) as cluster:
        jobs = [
            cluster.submit("twice", 3),
            cluster.submit("negative", 3, "words", dispy_job_depends=[negative, str(tmp_path / "words")]),
            cluster.submit("twice", 4),
        ]
        assert [job() for job in jobs] == [(6, ["twice"], []), (-3, ["twice", "negative"], ["a b"]), (8, ["twice"], [])]


def test_what_is_wrong_is_said():
    for words, make in [
        ("has no 'setup' here: let the function", lambda: dispy.JobCluster(calls.add, setup=print)),
        ("has no 'cleanup' here: each job", lambda: dispy.JobCluster(calls.add, cleanup=False)),
        ("has no 'fault_recover' here: see docs", lambda: dispy.JobCluster(calls.add, fault_recover=True)),
        ("argument 'memory'", lambda: dispy.JobCluster(calls.add, nodes={"host": "localhost", "memory": 1})),
        ("a computation is a function", lambda: dispy.JobCluster(3)),
        ("a node is a name", lambda: dispy.JobCluster(calls.add, nodes=[3])),
        ("nowhere cannot be sent to the nodes: No such file", lambda: dispy.JobCluster("nowhere")),
        ("nodes are named here", lambda: dispy.JobCluster(calls.add, nodes=["10.1.2.*"])),
    ]:
        with pytest.raises((TypeError, ValueError), match=words):
            make()


def test_what_has_no_use_is_said_in_one_line(caplog):
    def said():
        lines = [record.getMessage() for record in caplog.records]
        caplog.clear()
        assert all(line.startswith("dispy: ") for line in lines)
        return [line.split(":")[1].strip() for line in lines]

    try:
        with dispy.JobCluster(calls.add, nodes=[("localhost", 51348, 1)], secret="x", keyfile=None, dest_path=None, cleanup=True) as cluster:
            assert cluster.submit(1)() == 111
        assert said() == ["secret has no use here", "the port of a node has no use here"]
        with dispy.JobCluster(calls.add, nodes=["localhost"], pulse_interval=5, loglevel=dispy.logger.ERROR, ip_addr="127.0.0.1", ext_host="localhost") as cluster:
            command = open(f"/proc/{cluster.client._cluster._process.pid}/cmdline").read().split("\0")
            assert "--ip=127.0.0.1" in command and "--location=localhost" in command and cluster.submit(1)() == 111
        assert said() == []
    finally:
        dispy.logger.setLevel(0)


def test_a_with_block_that_fails_waits_for_nothing():
    with pytest.raises(ZeroDivisionError):
        with dispy.JobCluster(calls.nap, nodes=["localhost"]) as cluster:
            job = cluster.submit(600)
            1 / 0
    assert job.finish.is_set() and job.status == dispy.DispyJob.Cancelled


@pytest.fixture
def shared(tmp_path, monkeypatch):
    """The default profile's cluster, and what starts nodes for it."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    engines = []

    def start():
        environment = dict(os.environ, PYTHONPATH=os.path.dirname(__file__))
        engines.append(subprocess.Popen([program("ipengine"), "--profile=default", f"--python={sys.executable}"], env=environment, stderr=subprocess.DEVNULL))

    with ipbroker.Cluster(n=0, profile="default"):
        yield start
        for engine in engines:
            engine.terminate()
            engine.wait(30)


def test_programs_share_nodes_that_come_and_go(shared, tmp_path):
    def compute(place):
        with open(place, "a") as file:
            print(os.getppid(), file=file)
        while len(open(place).readlines()) < 2:
            time.sleep(0.02)
        return 42

    with dispy.SharedJobCluster(calls.square, scheduler_node="localhost") as squares:
        # There is no node yet.
        job = squares.submit(5)
        assert squares.status().nodes == [] and not squares.wait(0.1)
        shared()
        assert job() == 25
        (node,) = squares.status().nodes
        assert node.cpus == 1
        with dispy.SharedJobCluster(compute, nodes=["localhost"], reentrant=True) as cluster, dispy.SharedJobCluster(compute, nodes=["localhost"]) as other:
            for each, then in [(cluster, dispy.DispyJob.Finished), (other, dispy.DispyJob.Abandoned)]:
                place = tmp_path / str(then)
                job = each.submit(str(place))
                wait_until(lambda: place.exists() and place.read_text().endswith("\n"))
                os.kill(int(place.read_text()), signal.SIGKILL)
                shared()
                job()
                assert job.status == then, job.exception
                assert job.exception is None if then == dispy.DispyJob.Finished else "EngineError" in job.exception
            assert squares.submit(6)() == 36
            cluster.print_status()
        with pytest.MonkeyPatch.context() as patch, pytest.raises(ipbroker.IpbrokerError, match=r"is for Python 3\.99 only, and the engines run 3\.\d+;"):
            patch.setattr("ipbroker.client.PYTHON", "3.99")
            dispy.SharedJobCluster(calls.square)


def test_nodes_over_ssh(lab, tmp_path):
    same = f"import sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"
    if subprocess.run([*lab.on("a"), "python3", "-c", same]).returncode != 0:
        pytest.skip("functions go to the same minor version of Python")
    (tmp_path / "ours.py").write_text("def compute(n):\n    import socket\n    return socket.gethostname(), n\n")
    (tmp_path / "program.py").write_text(
        """
import ipbroker.compat.dispy as dispy, ours
with dispy.JobCluster(ours.compute, nodes=["a", ("b", None, 2)]) as cluster:
    jobs = [cluster.submit_node(node, n) for n, node in enumerate(["a", "b", "10.77.0.11", "10.77.0.12"])]
    print([(job(), job.ip_addr) for job in jobs])
    cluster.stats()
"""
    )
    done = subprocess.run([*lab.here, sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    result, *table = filter(None, done.stdout.splitlines())
    a, b = "10.77.0.11", "10.77.0.12"
    assert eval(result) == [(("a", 0), a), (("b", 1), b), (("a", 2), a), (("b", 3), b)]
    assert [row.split("|")[0].strip() for row in table[2:4]] == [f"{a} (a)", f"{b} (b)"] and [row.split("|")[2].strip() for row in table[2:4]] == ["2", "2"]


def wait_until(there, seconds=60):
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)
