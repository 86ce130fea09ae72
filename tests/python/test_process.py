"""The process around a client: start, Ctrl-C, fork, exit, what is left behind."""

import concurrent.futures
import gc
import glob
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time

import pytest

import calls
import ipbroker

HERE = os.path.dirname(__file__)


def python(code, *arguments, timeout=90, **more):
    """Runs a program of its own; its output."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), *arguments], cwd=HERE, capture_output=True, text=True, timeout=timeout, **more)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def left_behind(place):
    """Files in a test's temporary directory, and the processes that have it as theirs."""
    left = os.listdir(place)
    for path in glob.glob("/proc/[0-9]*/environ"):
        try:
            with open(path, "rb") as file, open(path.replace("environ", "cmdline"), "rb") as command:
                if f"TMPDIR={place}".encode() in file.read().split(b"\0"):
                    left.append(command.read())
        except OSError:
            pass  # it has just ended
    return left


@pytest.fixture
def clean(tmp_path, monkeypatch):
    """Nothing that the test starts is left behind."""
    with tempfile.TemporaryDirectory(prefix="clean-") as place:
        monkeypatch.setenv("TMPDIR", place)
        monkeypatch.setattr(tempfile, "tempdir", place)
        yield
        end = time.monotonic() + 30
        while left_behind(place):
            assert time.monotonic() < end, left_behind(place)
            time.sleep(0.05)


def test_a_program_of_five_lines(clean):
    text = python(
        """
        import ipbroker
        with ipbroker.Cluster(n=2) as cluster:
            with cluster.client().executor() as ex:
                def f(x): return x + 1
                print(list(ex.map(f, range(3))), ex.submit(f, 41).result())
        """
    )
    assert text == "[1, 2, 3] 42\n"


def test_nothing_is_closed_and_nothing_is_left(clean):
    text = python(
        """
        import ipbroker
        client = ipbroker.Cluster(n=1).client()
        ex = client.executor()
        futures = [ex.submit(pow, 2, n) for n in range(5)]
        client.view().submit(__import__("time").sleep, 600)
        print(futures[4].result())
        """
    )
    assert text == "16\n"


def test_a_killed_process_leaves_nothing(clean):
    process = subprocess.Popen([sys.executable, "-c", "import ipbroker, time; c = ipbroker.Cluster(n=1); print(1, flush=True); time.sleep(600)"], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"1\n"
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("profile", [None, "ours"])
def test_engines_end_with_a_controller_that_is_killed(clean, tmp_path, monkeypatch, profile):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    with ipbroker.Cluster(n=2, profile=profile) as cluster:
        client = cluster.client()
        pids = {engine["pid"] for engine in client.engines} | {client.submit(calls.pid).result(60)}
        client.submit(calls.nap, 600)
        os.kill(client.status()["pid"], signal.SIGKILL)
        end = time.monotonic() + 30
        while any(map(lives, pids)):
            assert time.monotonic() < end
            time.sleep(0.02)


def lives(pid):
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return file.read() != ""  # nobody may have asked yet how it ended
    except OSError:
        return False


def test_exit_waits_for_what_an_executor_has_begun(clean, tmp_path):
    python(
        """
        import ipbroker, sys, calls
        cluster = ipbroker.Cluster(n=1)
        ex = cluster.client().executor()
        ex.submit(calls.nap, 0.5)
        ex.submit(open, sys.argv[1], "w")
        """,
        str(tmp_path / "there"),
    )
    assert (tmp_path / "there").exists()


@pytest.mark.parametrize("what", ["ex.submit(calls.nap, 600).result()", "list(ex.map(calls.nap, [600] * 9))", "concurrent.futures.wait([ex.submit(calls.nap, 600)])", "client.run(['sleep 600']).wait()", "client.wait_for_engines(99)"])
def test_ctrl_c_interrupts(clean, what):
    code = f"""
        import ipbroker, calls, concurrent.futures, time
        with ipbroker.Cluster(n=1) as cluster:
            client = cluster.client()
            ex = client.executor()
            ex.submit(calls.nap, 0).result()
            print("now", flush=True)
            try:
                {what}
            except KeyboardInterrupt:
                print("interrupted", flush=True)
            client.abort()
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "now\n"
    time.sleep(0.5)  # the wait has begun, in all likelihood; Ctrl-C is to work before it, too
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert out == "interrupted\n", err


@pytest.mark.parametrize("what", ["ex.submit(calls.nap, 600).result()", "with client.executor() as ex: ex.submit(calls.nap, 600).result()", "with client.executor() as ex: ex.map(calls.nap, [600] * 9)"])
def test_a_program_that_ctrl_c_ends_waits_for_no_call(cluster, what):
    code = f"""
        import ipbroker, calls
        client = ipbroker.Client(file={cluster.client().connection_file!r})
        ex = client.executor()
        print(client.session, flush=True)
        ex.submit(calls.nap, 600)
        {what}
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT and err.count("Traceback") == 1, err
    with cluster.client() as client:
        end = time.monotonic() + 60
        while client.status()["tasks"]["running"]:
            assert time.monotonic() < end, "the calls run on"
            time.sleep(0.02)


def test_a_forked_child_connects_anew(client):
    future = client.submit(calls.nap, 1.0, "late")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            try:
                future.result(20)
                text = "got it"
            except ipbroker.ForkError as error:
                text = f"{error}; {client.submit(calls.square, 7).result(30)}"
            os.write(writer, text.encode())
            client.close()
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as stream:
        text = stream.read()
    os.waitpid(child, 0)
    assert f"submitted by process {os.getpid()}" in text and text.endswith("; 49")
    assert future.result(30) == "late"
    assert client.submit(calls.square, 8).result(30) == 64


def _in_a_process(file):
    with ipbroker.Client(file=file) as client:
        return client.submit(calls.square, 9).result(60)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(client, method):
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(_in_a_process, (client.connection_file,)) == 81


def test_a_client_that_is_collected_closes_after_its_calls(cluster):
    client = ipbroker.Client(**cluster._where)
    future = client.submit(calls.nap, 0.5, 3)
    results = client.view().map(calls.nap, [0.1, 0.1])
    link = client._link
    del client
    gc.collect()
    assert future.result(30) == 3 and list(results) == [None, None]
    del results
    gc.collect()
    end = time.monotonic() + 30
    while not link.closed or link._thread.is_alive():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_program_ends_well_whose_client_goes_with_its_last_result(client):
    text = python(
        """
        import ipbroker, sys
        print([ipbroker.Client(file=sys.argv[1]).submit(abs, -n).result() for n in range(3)])
        """,
        client.connection_file,
    )
    assert text == "[0, 1, 2]\n"


def test_a_closed_client_says_so(cluster):
    client = ipbroker.Client(**cluster._where)
    future = client.submit(calls.nap, 600)
    client.close()
    with pytest.raises(ipbroker.ClosedError):
        future.result(10)
    with pytest.raises(ipbroker.ClosedError):
        client.submit(pow, 1, 1)
    assert client.closed and "closed" in repr(client)
    client.close()


def test_all_that_is_awaited_ends_when_its_client_closes(cluster):
    client = ipbroker.Client(**cluster._where)
    future = client.submit(calls.nap, 600)
    results = client.view().map(calls.nap, [600])
    jobs = client.run(["sleep 600", "sleep 601"])
    client.close()
    assert jobs.wait(30) and all("the client was closed" in job["result"]["error"] for job in jobs.failed) and len(jobs.failed) == 2
    with pytest.raises(ipbroker.ClosedError):
        next(results)
    with pytest.raises(ipbroker.ClosedError):
        future.result(30)


@pytest.mark.parametrize(
    "wait",
    [
        lambda waits: next(waits["map"]),
        lambda waits: next(waits["unordered"]),
        lambda waits: waits["jobs"].wait(),
        lambda waits: next(waits["jobs"].as_completed()),
        lambda waits: concurrent.futures.wait([waits["future"]]),
        lambda waits: next(concurrent.futures.as_completed([waits["future"]])),
        lambda waits: waits["executor"].shutdown(),
    ],
    ids=["map", "unordered", "jobs", "ended", "wait", "as_completed", "shutdown"],
)
def test_a_forked_child_does_not_wait_for_what_its_parent_gets(cluster, wait):
    client = ipbroker.Client(**cluster._where)
    executor = client.executor()
    view = client.view()
    waits = {"executor": executor, "future": executor.submit(calls.nap, 600), "jobs": client.run(["sleep 600"])}
    waits.update(map=view.map(calls.nap, [600]), unordered=view.map_unordered(calls.nap, [600]))
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(30)
            try:
                text = f"no wait: {wait(waits)}"
            except ipbroker.ForkError as error:
                text = str(error)
            os.write(writer, text.encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as stream:
        text = stream.read()
    os.waitpid(child, 0)
    client.abort()
    client.close()
    assert f"submitted by process {os.getpid()}" in text or text == "no wait: None"


def test_where_there_is_no_cluster(tmp_path):
    with pytest.raises(ipbroker.ConnectionError, match="no connection file .*ipbroker.Cluster"):
        ipbroker.Client(profile_dir=tmp_path)
    with pytest.raises(ValueError, match="^profile or profile_dir, not both$"):
        ipbroker.Client("default", profile_dir=tmp_path)
    with pytest.raises(ipbroker.IpbrokerError, match="IPBROKER_CONNECTION"):
        ipbroker.current_client()


def test_a_cluster_that_cannot_start_says_why(clean):
    with pytest.raises(ipbroker.IpbrokerError, match="--scheme"):
        ipbroker.Cluster(n=1, options=["--scheme=none"])
    with pytest.raises(ipbroker.IpbrokerError, match="ended 4 times .*: ipengine: --python: /bin/true is no Python interpreter"):
        ipbroker.Cluster(n=1, python="/bin/true")
    with pytest.raises(TypeError, match=r"n is how many engines, not \['a'\]; hosts=\['a'\] says where"):
        ipbroker.Cluster(["a"])
    with pytest.raises(ValueError, match=r"hosts is a list of names .*, not \[''\]"):
        ipbroker.Cluster(hosts=[""])
    with pytest.raises(ipbroker.IpbrokerError, match="no such program"):
        ipbroker.Cluster(n=1, python="no-such-python")


@pytest.mark.parametrize("n", [None, 4])
def test_a_cluster_whose_hosts_are_not_there_says_so_at_once(clean, n):
    begin = time.monotonic()
    with pytest.raises(ipbroker.IpbrokerError, match="no-such-host.invalid.*find the address"):
        ipbroker.Cluster(n, hosts=["no-such-host.invalid"])
    assert time.monotonic() - begin < 40


def states(session):
    """The processes of a session, and the state of each thread."""
    for path in glob.glob("/proc/[0-9]*/task/*/stat"):
        try:
            with open(path) as file:
                state, _, _, its = file.read().rpartition(")")[2].split()[:4]
        except OSError:
            continue  # it has just ended
        if int(its) == session:
            yield int(path.split("/")[2]), state


def test_a_call_is_cancelled_while_its_python_starts(clean, capfd):
    with ipbroker.Cluster(n=1) as cluster:
        client = cluster.client()
        future = client.submit(calls.nap, 600)
        end = time.monotonic() + 30
        while not client.status()["tasks"]["running"]:
            assert time.monotonic() < end
        assert future.cancel()
        assert client.submit(calls.square, 3).result(60) == 9
    # Nor does Python say how it was interrupted.
    assert capfd.readouterr() == ("", "")


def test_a_controller_that_has_gone_is_not_waited_for_for_ever(clean):
    with ipbroker.Cluster(n=1) as cluster:
        client = ipbroker.Client(**{**cluster._where, "grace": 2.0})
        future = client.submit(calls.nap, 600)
        os.kill(client.status()["pid"], signal.SIGKILL)
        with pytest.raises(ipbroker.ControllerLost, match="the controller is gone"):
            future.result(60)
        client.close()


def test_who_reads_the_log_does_not_write_over_it(clean):
    with ipbroker.Cluster(n=1) as cluster:
        file, session = cluster._log.fileno(), os.getsid(cluster._process.pid)
        # What they write moves the place as well, which they share with who reads.
        for pid in {pid for pid, _ in states(session)}:
            os.kill(pid, signal.SIGSTOP)
        end = time.monotonic() + 30
        while {state for _, state in states(session)} != {"T"}:
            assert time.monotonic() < end, list(states(session))
            time.sleep(0.01)
        os.lseek(file, 5, os.SEEK_SET)
        assert "registered" in cluster.log
        assert os.lseek(file, 0, os.SEEK_CUR) == 5
        os.lseek(file, 0, os.SEEK_END)
        for pid in {pid for pid, _ in states(session)}:
            os.kill(pid, signal.SIGCONT)
    assert "controller stopped" in cluster.log


def test_a_profile_is_kept(clean, tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    with ipbroker.Cluster(n=1, profile="kept") as cluster:
        assert ipbroker.Client("kept").submit(calls.square, 2).result(30) == 4
        assert "kept" in repr(cluster) and "kept" in cluster._repr_html_()
    assert (tmp_path / "profile_kept").is_dir()
    assert not cluster.running


def test_an_engine_that_dies_says_how(clean):
    with ipbroker.Cluster(n=1) as cluster:
        client = cluster.client()
        with pytest.raises(ipbroker.EngineError, match="SIGSEGV"):
            client.submit(crash).result(60)
        with pytest.raises(ipbroker.EngineError, match="7"):
            client.submit(os._exit, 7).result(60)
        assert client.submit(calls.square, 3).result(60) == 9
        first = client.submit(calls.pid).result(60)
        assert client.submit(calls.pid).result(60) == first


def test_only_the_call_that_ran_dies_with_its_python(cluster, tmp_path):
    def odd(x):
        with open(f"{tmp_path}/ran", "a") as file:
            file.write(f"{x}\n")
        return os._exit(3) if x % 50 == 7 else x

    with ipbroker.Client(**cluster._where) as client:
        # Many travel together.
        futures = [client.submit(odd, x) for x in range(300)]
        for x, future in enumerate(futures):
            if x % 50 == 7:
                with pytest.raises(ipbroker.EngineError, match="exit code 3 while it ran .*odd"):
                    future.result(60)
            else:
                assert future.result(60) == x
    assert sorted(map(int, (tmp_path / "ran").read_text().split())) == list(range(300))


def crash():
    import ctypes

    ctypes.string_at(0)


def test_what_costs_time_is_imported_when_it_is_needed():
    text = python(
        """
        import sys
        before = set(sys.modules)
        import ipbroker
        print(*set(sys.modules) - before)
        from ipbroker import *
        assert all(hasattr(ipbroker, name) for name in ipbroker.__all__) and set(ipbroker.__all__) <= set(dir(ipbroker))
        print(*{name.partition(".")[0] for name in set(sys.modules) - before})
        """
    )
    first, all = map(str.split, text.splitlines())
    assert set(first) == {"ipbroker", "ipbroker._native"}
    assert not {"cloudpickle", "asyncio", "numpy", "joblib", "IPython", "multiprocessing"} & set(all)
