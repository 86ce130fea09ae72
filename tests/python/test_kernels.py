"""`ipengine --kernel`: Jupyter kernels in our engines, as ipyparallel's client has them."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import pytest

import ipbroker
from ipbroker.cluster import program

ipp = pytest.importorskip("ipyparallel")

# Answers the first question, and ends.
MAYFLY = """
import json, sys, zmq
from jupyter_client.session import Session
info = json.load(open(sys.argv[1]))
context = zmq.Context()
socket = context.socket(zmq.ROUTER)
socket.bind("ipc://%s-1" % info["ip"])
session = Session(key=info["key"].encode())
ident, frames = session.feed_identities(socket.recv_multipart())
session.send(socket, "kernel_info_reply", {"status": "ok"}, parent=session.deserialize(frames), ident=ident)
socket.close(1000)
context.term()
sys.exit(7)
"""

R = ["R", "--slave", "-e", "IRkernel::main()", "--args", "{connection_file}"]


def wait_for(condition, what, timeout=60):
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {timeout} s")


class Place:
    """A controller without engines, a client of it, and a directory of kernelspecs."""

    def __init__(self, directory):
        self.specs = directory / "jupyter"
        for name, argv in [
            ("python3", [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]),
            ("bash", [sys.executable, "-m", "bash_kernel", "-f", "{connection_file}"]),
            ("ir", R),
            ("stillborn", ["false"]),
            ("mayfly", [sys.executable, "-c", MAYFLY, "{connection_file}"]),
            ("nowhere", ["/no/such/program"]),
        ]:
            (self.specs / "kernels" / name).mkdir(parents=True)
            (self.specs / "kernels" / name / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": name, "language": name}))
        self.environment = dict(os.environ, JUPYTER_PATH=str(self.specs), PYTHONPATH=os.path.dirname(__file__))

    def command(self, *options):
        return [program("ipengine"), "--profile=default", *options]

    @contextlib.contextmanager
    def engines(self, *options, n=1, environment=()):
        """The ids of the engines of one process, which is there meanwhile."""
        with ipp.Client() as rc, tempfile.TemporaryFile("w+") as log:
            before = set(rc.ids)
            process = subprocess.Popen(self.command(f"-n={n}", *options), env=dict(self.environment, **dict(environment)), stderr=log)
            try:
                mine = lambda: process.poll() is not None or sorted(set(rc.ids) - before)[n - 1 :] and sorted(set(rc.ids) - before)  # noqa: E731
                ids = wait_for(mine, "engines")
                assert process.poll() is None, (log.seek(0), log.read())
                yield Engines(rc, ids, process)
            finally:
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    raise
                finally:
                    log.seek(0)
                    print(log.read())

    def fails(self, *options):
        """What an engine says that cannot start: one line."""
        done = subprocess.run(self.command(*options), env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode != 0, done
        last = [line for line in done.stderr.splitlines() if line.startswith("ipengine: ")]
        assert len(last) == 1 and "panicked" not in done.stderr, done.stderr
        return last[0]


class Engines:
    def __init__(self, rc, ids, process):
        self.rc, self.ids, self.process = rc, ids, process
        self.view = rc[ids]
        self.one = rc[ids[0]]

    def run(self, code, view=None):
        """A cell's result, with its output."""
        result = (self.one if view is None else view).execute(code, silent=False, block=False)
        result.get(60)
        result.wait_for_output(60)
        return result

    def begun(self, code, view=None):
        """A cell that has printed something."""
        result = (self.one if view is None else view).execute(code, silent=False, block=False)
        wait_for(lambda: result.stdout, "the cell has begun")
        return result

    def fails(self, result, *names):
        with pytest.raises((ipp.RemoteError, ipp.TaskAborted)) as error:
            result.get(60)
        assert getattr(error.value, "ename", "TaskAborted") in names, str(error.value)
        return error.value

    def abort(self, result):
        """What `ipclient abort` asks."""
        content = {"msg_ids": result.msg_ids, "kill": True}
        return self.rc._send_recv(self.rc._query_stream, "abort_request", content)["content"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        directory = tmp_path_factory.mktemp("kernels")
        patch.setenv("IPYTHONDIR", str(directory))
        # Heartbeats so fast that who holds the GIL for a while would miss too many of them.
        with ipbroker.Cluster(n=0, profile="default", options=["--packer=json", "--ping=100"]):
            yield Place(directory)


@pytest.fixture(scope="module")
def python(place):
    with place.engines("--kernel=python3", n=2) as engines:
        yield engines


PID = "import os; print(os.getpid(), flush=True); "
SLEEP = PID + "import time; time.sleep(600)"


# Any kernel: python3.


def test_cells(python):
    assert python.run("a = 6 * 7", python.view).get() and python.run("a").execute_result["data"]["text/plain"] == "42"
    result = python.run("import sys; print('out'); print('err', file=sys.stderr)", python.view)
    assert [out for out in result.stdout] == ["out\n"] * 2 and [err for err in result.stderr] == ["err\n"] * 2
    assert result.engine_id == python.ids
    shown = python.run("from IPython.display import HTML, display; display(HTML('<b>x</b>'))")
    assert shown.outputs[0]["data"]["text/html"] == "<b>x</b>"
    # Each engine has a kernel of its own, and it stays.
    pids = [out for out in python.run(PID, python.view).stdout]
    assert len(set(pids)) == 2 and [out for out in python.run(PID, python.view).stdout] == pids


def test_a_cell_that_fails(python):
    error = python.fails(python.one.execute("a = 1\n1/0"), "ZeroDivisionError")
    assert "a = 1" in re.sub("\x1b\\[[0-9;]*m", "", error.traceback)
    assert error.engine_info == {"engine_id": python.ids[0], "engine_uuid": python.rc._engines[python.ids[0]], "method": "execute"}
    # What waits behind a cell that has failed is not run; what comes later is.
    gate = python.begun("print(1, flush=True); import time; time.sleep(0.5); 1/0")
    behind = python.one.execute("b = 1", silent=False)
    python.fails(gate, "ZeroDivisionError")
    python.fails(behind, "TaskAborted")
    python.fails(python.one.execute("b"), "NameError")


def test_a_kernel_that_has_no_apply_says_so(python):
    for view in [python.one, python.rc.load_balanced_view(python.ids)]:
        assert "--kernel ipyparallel" in str(python.fails(view.apply_async(abs, -1), "NotImplementedError"))


def test_px(python):
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output
    from traitlets.config import Config

    main = sys.modules["__main__"]
    shell = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    sys.modules["__main__"] = main
    view = python.rc[python.ids]
    view.block = True
    view.activate("_kernel")
    with capture_output() as io:
        shell.run_line_magic("px_kernel", "print('from an engine')")
    assert io.stdout.count("from an engine") == 2
    InteractiveShell.clear_instance()


def test_input_is_refused(python):
    error = python.fails(python.one.execute("input('name? ')"), "StdinNotImplementedError")
    assert "input" in str(error)


def test_abort_of_a_running_cell(python):
    result = python.begun(SLEEP)
    pid = int(result.stdout)
    assert python.abort(result)["stopping"] == 1
    python.fails(result, "KeyboardInterrupt", "TaskAborted")
    # It was interrupted, and lives.
    assert int(python.run(PID).stdout) == pid


def test_signals(python):
    result = python.begun(SLEEP, python.view)
    wait_for(lambda: all(result.stdout), "both have begun")
    python.rc.send_signal("SIGINT", python.ids, block=True)
    for error in result.get(60, return_exceptions=True):
        assert error.ename == "KeyboardInterrupt"
    with pytest.raises(ipp.RemoteError):
        python.rc.send_signal("SIGNONE", python.ids, block=True)


def test_a_signal_to_the_process(place):
    """Each of its kernels gets it, as each of the peer's engines would."""
    with place.engines("--kernel=python3", n=2) as engines:
        engines.run("import signal\ndef stop(*_): raise RuntimeError('USR1')\n_ = signal.signal(signal.SIGUSR1, stop)", engines.view)
        result = engines.begun(SLEEP, engines.view)
        wait_for(lambda: all(result.stdout), "both have begun")
        engines.process.send_signal(signal.SIGUSR1)
        for error in result.get(60, return_exceptions=True):
                assert (error.ename, error.evalue) == ("RuntimeError", "USR1")


def test_two_clients_interrupt_the_same_engine(python):
    result = python.begun(SLEEP)
    with ipp.Client() as other:
        for client in [other, python.rc] * 3:
            client.send_signal(signal.SIGINT, python.ids[0], block=False)
        python.fails(result, "KeyboardInterrupt")
    python.run("1")


def test_a_cell_that_ignores_interrupts(python):
    result = python.begun("import signal; _ = signal.signal(signal.SIGINT, signal.SIG_IGN); " + SLEEP)
    pid = int(result.stdout)
    python.abort(result)
    python.fails(result, "TaskAborted", "KeyboardInterrupt", "EngineError")
    assert int(python.run(PID).stdout) != pid


@pytest.mark.parametrize(
    "end, word",
    [
        ("os.kill(os.getpid(), 9)", "SIGKILL"),
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
        ("os.abort()", "SIGABRT"),
        ("os._exit(3)", "3"),
        ("os._exit(0)", "0"),
    ],
)
def test_a_kernel_that_ends(python, end, word):
    """The cell fails with how it ended; the next one finds another kernel behind the same id."""
    ids = list(python.rc.ids)
    python.run("kept = 1")
    failed = python.one.execute(end if end.startswith("import") else "import os; " + end, silent=False)
    queued = [python.one.execute("kept_" + str(at) + " = 1") for at in range(3)]
    error = python.fails(failed, "EngineError")
    assert word in str(error), str(error)
    failed.wait_for_output(60)
    for result in queued:
        result.get(60)
    python.fails(python.one.execute("kept"), "NameError")
    python.run("kept_2")
    assert python.rc.ids == ids


def test_what_waits_behind_exit_runs_in_another_kernel(python):
    python.run("mark = 1")
    for result in [python.one.execute(code, silent=False) for code in ["exit", *["assert 'mark' not in globals()"] * 20]]:
        result.get(60)


def test_a_kernel_that_is_killed(python):
    result = python.begun(SLEEP)
    os.kill(int(result.stdout), signal.SIGKILL)
    assert "SIGKILL" in str(python.fails(result, "EngineError"))
    # Idle, too.
    pid = int(python.run(PID).stdout)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not alive(pid), "it has ended")
    assert int(python.run(PID).stdout) != pid


def test_what_a_kernel_has_started_goes_with_it(python):
    result = python.begun("import os, subprocess, time; print(os.getpid(), subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)")
    kernel, child = map(int, result.stdout.split())
    os.kill(kernel, signal.SIGKILL)
    python.fails(result, "EngineError")
    wait_for(lambda: not alive(child), "its child has ended")


def alive(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_thousand_cells_behind_one_that_ends_the_kernel(python):
    gone = python.one.execute("import os; os._exit(1)")
    behind = [python.one.execute(f"at = {at}") for at in range(1000)]
    python.fails(gone, "EngineError")
    python.rc.wait(behind, 100)
    assert all(result.successful() for result in behind)
    assert python.run("at").execute_result["data"]["text/plain"] == "999"


def test_a_cell_that_holds_the_gil(python):
    """Thirty heartbeats pass, of which the kernel could answer none."""
    ids = list(python.rc.ids)
    result = python.one.execute("import ctypes; ctypes.PyDLL(None).sleep(3)")
    result.get(60)
    assert python.rc.ids == ids and result.elapsed > 2.9
    python.run("1")


def test_a_flood_of_output(python):
    result = python.run("for at in range(200_000): print(at)")
    assert result.stdout == "".join(f"{at}\n" for at in range(200_000))


def test_comms_and_questions_beside_a_cell(python):
    """A busy kernel answers what goes over its control channel."""
    result = python.begun(SLEEP)
    uuid = python.rc._engines[python.ids[0]].encode()
    asked = python.rc._send(python.rc._control_stream, "kernel_info_request", content={}, ident=uuid)
    asked.wait(60)
    assert asked.result()["content"]["language_info"]["name"] == "python"
    python.abort(result)
    result.wait(60)


def test_shutdown(place):
    with place.engines("--kernel=python3", n=2) as engines:
        pid = int(engines.run(PID).stdout)
        engines.rc.shutdown(engines.ids[0], block=True)
        wait_for(lambda: engines.ids[0] not in engines.rc.ids, "the engine has left")
        wait_for(lambda: not alive(pid), "so has its kernel")
        engines.run("1", engines.rc[engines.ids[1]])
        engines.rc.shutdown(engines.ids[1], block=True)
        assert engines.process.wait(10) == 0


def test_no_kernel_outlives_its_engine(place):
    with place.engines("--kernel=python3") as engines:
        pid = int(engines.run(PID).stdout)
        engines.process.kill()
        wait_for(lambda: not alive(pid), "the kernel has gone")


def test_no_such_kernel(place):
    line = place.fails("--kernel=none-such")
    assert "none-such" in line and "stillborn" in line


@pytest.mark.parametrize("name, word", [("stillborn", "1"), ("nowhere", "/no/such/program")])
def test_a_kernel_that_cannot_start(place, name, word):
    line = place.fails(f"--kernel={name}")
    assert name in line and word in line


def test_a_kernel_that_ends_at_its_start_each_time(place):
    """It answered, so the next one may live; but not for ever."""
    line = place.fails("--kernel=mayfly")
    assert "6 times just after its start" in line and "exit code 7" in line


def test_a_module_that_the_interpreter_lacks(tmp_path):
    """One line says which, and the controller starts no other."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python = venv / "bin/python"
    command = [program("ipctl"), f"--profile-dir={tmp_path / 'profile'}", "-n=3", f"--python={python}", "--kernel=ipyparallel", "--packer=msgpack"]

    def said(words):
        log = tmp_path / "log"
        with open(log, "w") as file, subprocess.Popen(command, stderr=file) as ipctl:
            try:
                # Three engines in as many processes as there are cores.
                wait_for(lambda: log.read_text().count("cannot run here") == min(3, os.cpu_count()), "it is given up")
            finally:
                ipctl.terminate()
        lines = log.read_text().splitlines()
        told = [line for line in lines if line.startswith("ipengine: ")]
        assert len(told) == min(3, os.cpu_count()) and all(words in line for line in told), lines
        assert not any("Traceback" in line or "starting it again" in line for line in lines), lines

    said(f"{python} has no module ipyparallel: `{python} -m pip install ipyparallel`")
    # All but msgpack, wherever this test has that.
    packages = venv / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    hide = "import sys; sys.modules['msgpack'] = None\n"
    places = [path for path in sys.path if "site-packages" in path]
    (packages / "all.pth").write_text("\n".join(places) + "\n" + hide)
    said(f"{python} has no module msgpack, by which this cluster packs its messages")


# Other languages.


@pytest.fixture(scope="module")
def bash(place):
    pytest.importorskip("bash_kernel")
    with place.engines("--kernel=bash") as engines:
        yield engines


@pytest.fixture(scope="module")
def r(place):
    there = shutil.which("R") and subprocess.run(["R", "--slave", "-e", "library(IRkernel)"], capture_output=True).returncode == 0
    if not there:
        pytest.skip("R has no IRkernel here (Debian: r-cran-irkernel)")
    with place.engines("--kernel=ir") as engines:
        yield engines


def test_bash(bash):
    assert bash.run("echo hello; word=kept").stdout == "hello\n"
    assert bash.run("echo $word").stdout == "kept\n"
    with pytest.raises(ipp.RemoteError) as error:
        bash.run("echo before; exit_with() { return 7; }; exit_with")
    assert error.value.evalue == "7" and error.value.engine_info["engine_id"] == bash.ids[0]
    result = bash.begun("echo begun; sleep 600; echo over")
    bash.abort(result)
    result.wait(60)
    assert "over" not in result.stdout
    assert bash.run("echo here").stdout == "here\n"


def test_bash_that_is_killed(bash):
    # bash runs below the kernel, whose process is its parent.
    result = bash.begun("word=lost; echo begun; sleep 1; kill -9 $PPID; sleep 600")
    assert "SIGKILL" in str(bash.fails(result, "EngineError"))
    assert bash.run("echo ${word-none}").stdout == "none\n"


def test_r(r):
    assert r.run("x <- 6 * 7; cat(x)").stdout == "42"
    shown = r.run("x").outputs[0]["data"]
    assert shown["text/plain"] == "[1] 42"
    with pytest.raises(ipp.RemoteError, match="no such luck"):
        r.run("stop('no such luck')")
    result = r.begun("cat('begun\n'); flush.console(); Sys.sleep(600); cat('over')")
    r.abort(result)
    result.wait(60)
    assert "over" not in result.stdout
    assert r.run("cat('here')").stdout == "here"


def test_r_that_is_killed(r):
    result = r.begun("cat(Sys.getpid(), '\n'); flush.console(); Sys.sleep(600)")
    os.kill(int(result.stdout), signal.SIGKILL)
    assert "SIGKILL" in str(r.fails(result, "EngineError"))
    assert r.run("cat(exists('x'))").stdout == "FALSE"


# ipyparallel's own kernel.


@pytest.fixture(scope="module")
def parallel(place):
    with place.engines("--kernel=ipyparallel", f"--python={sys.executable}", n=2) as engines:
        yield engines


def test_apply(parallel):
    numpy = pytest.importorskip("numpy")
    assert parallel.view.apply_sync(lambda x: 2 * x, 21) == [42, 42]
    pids = parallel.view.apply_sync(os.getpid)
    assert len(set(pids)) == 2 and parallel.view.apply_sync(os.getpid) == pids
    array = numpy.arange(1_000_000)
    assert (parallel.one.apply_sync(lambda a: a[::-1].copy(), array) == array[::-1]).all()
    balanced = parallel.rc.load_balanced_view(parallel.ids)
    assert balanced.map_sync(lambda x: x * x, range(50)) == [x * x for x in range(50)]
    error = parallel.fails(parallel.one.apply_async(lambda: 1 / 0), "ZeroDivisionError")
    assert error.engine_info["method"] == "apply"
    result = parallel.one.apply_async(lambda: print("printed"))
    result.get(60)
    result.wait_for_output(60)
    assert result.stdout == "printed\n"


def test_more_retries_than_engines(place):
    """Each engine has tried it: nobody waits for another, unless a timeout says how long."""
    options = ["--packer=json", "--kernel=ipyparallel", f"--python={sys.executable}"]
    with ipbroker.Cluster(n=2, profile="retries", options=options), ipp.Client(profile="retries") as rc:
        view = rc.load_balanced_view()
        for flags, error in (({}, "ZeroDivisionError"), ({"timeout": 0.1}, "TaskTimeout")):
            with view.temp_flags(retries=5, **flags), pytest.raises(ipp.RemoteError) as raised:
                view.apply_async(lambda: 1 / 0).get(60)
            assert raised.value.ename == error


def test_push_and_pull(parallel):
    parallel.view.push({"a": 1, "b": "x" * 1_000_000}, block=True)
    assert parallel.view.pull(("a", "b"), block=True) == [[1, "x" * 1_000_000]] * 2
    parallel.view.scatter("part", range(8), block=True)
    assert parallel.view.pull("part", block=True) == [range(4), range(4, 8)]
    parallel.rc.clear(parallel.ids, block=True)
    parallel.fails(parallel.one.pull("a"), "NameError")


def test_require_and_depend(parallel):
    parallel.view.push({"first": False}, block=True)
    parallel.one.push({"first": True}, block=True)

    @ipp.require("json")
    def text(value):
        return json.dumps(value)

    @ipp.interactive
    def is_first():
        return first  # noqa: F821

    @ipp.depend(is_first)
    def where():
        import os

        return os.getpid()

    balanced = parallel.rc.load_balanced_view(parallel.ids)
    assert balanced.apply_sync(text, [1]) == "[1]"
    here = parallel.one.apply_sync(os.getpid)
    assert [balanced.apply_sync(where) for _ in range(4)] == [here] * 4

    @ipp.require("no_such_module")
    def never():
        pass

    parallel.fails(balanced.apply_async(never), "ImpossibleDependency")


def test_data_pub(parallel):
    def publish():
        from ipyparallel.engine.datapub import publish_data

        publish_data({"step": 3})

    result = parallel.one.apply_async(publish)
    result.get(60)
    wait_for(lambda: result.data.get("step") == 3, "the data has come")


@pytest.mark.parametrize("coalescing", [False, True])
def test_broadcast(parallel, coalescing):
    view = parallel.rc.broadcast_view(parallel.ids, is_coalescing=coalescing)
    assert view.apply_sync(lambda x: 2 * x, 4) == [8, 8]
    with pytest.raises((ipp.RemoteError, ipp.CompositeError)):
        view.apply_sync(lambda: 1 / 0)


def test_a_call_that_ends_the_kernel(parallel):
    balanced = parallel.rc.load_balanced_view(parallel.ids[:1])
    gone = balanced.apply_async(os._exit, 1)
    behind = [balanced.apply_async(abs, -at) for at in range(1000)]
    parallel.fails(gone, "EngineError")
    assert [result.get(60) for result in behind] == list(range(1000))


def test_a_call_is_aborted(parallel):
    balanced = parallel.rc.load_balanced_view(parallel.ids[:1])
    pid = balanced.apply_sync(os.getpid)

    def begin():
        import time

        print("begun", flush=True)
        time.sleep(600)

    running, waiting = balanced.apply_async(begin), balanced.apply_async(abs, -1)
    wait_for(lambda: running.stdout, "the call has begun")
    waiting.abort()
    parallel.fails(waiting, "TaskAborted")
    parallel.abort(running)
    parallel.fails(running, "KeyboardInterrupt", "TaskAborted")
    assert balanced.apply_sync(os.getpid) == pid


def test_dask(parallel):
    pytest.importorskip("distributed")
    dask = parallel.rc.become_dask(parallel.ids, scheduler_args={"dashboard_address": None})
    assert dask.submit(sum, [1, 2, 3]).result(60) == 6
    dask.close()
    parallel.rc.stop_dask(parallel.ids)
    assert parallel.view.apply_sync(abs, -1) == [1, 1]


def test_configuration(place, tmp_path):
    """The profile's startup files and configuration, and options for the kernel, are those of ipyparallel's engine."""
    profile = os.path.join(os.environ["IPYTHONDIR"], "profile_default")
    os.makedirs(os.path.join(profile, "startup"), exist_ok=True)
    startup, config = os.path.join(profile, "startup", "first.py"), os.path.join(profile, "ipengine_config.py")
    with open(startup, "w") as file:
        file.write("from_startup = 1\n")
    with open(config, "w") as file:
        file.write("c.IPKernelApp.exec_lines = ['from_config = 2']\nc.IPEngine.startup_command = 'from_command = 3'\n")
    try:
        with place.engines("--kernel=ipyparallel", f"--python={sys.executable}", "--InteractiveShell.colors=nocolor") as engines:
            assert engines.one.pull(("from_startup", "from_config", "from_command"), block=True) == [1, 2, 3]
            assert engines.run("get_ipython().colors").execute_result["data"]["text/plain"] == "'nocolor'"
    finally:
        os.remove(startup)
        os.remove(config)


@pytest.fixture(scope="module")
def shared(place):
    """An engine that takes calls of this package and of ipyparallel's, and a view of ours on it."""
    options = ["--kernel=ipyparallel", f"--python={sys.executable}", "--tags=shared"]
    with place.engines(*options) as engines, ipbroker.Client(profile="default") as client:
        engines.ours = client.view(tags=["shared"])
        yield engines


def test_both_kinds_of_client_have_one_interpreter(shared):
    view = shared.ours
    for at in range(3):
        shared.one.push({"at": at}, block=True)
        assert view.submit(pow, 2, at).result(60) == 2**at
        assert shared.one["at"] == at
        # Globals, modules, the process itself.
        assert view.submit(eval, "__import__('__main__').at").result(60) == at
        view.submit(exec, f"import math; math.shared = {at}").result(60)
        assert shared.one.apply_sync(eval, "__import__('math').shared") == at
        assert shared.one.apply_sync(os.getpid) == view.submit(os.getpid).result(60)
    # A large argument, and a large result.
    data = os.urandom(5_000_000)
    assert view.submit(bytes.swapcase, data).result(60) == data.swapcase()
    with pytest.raises(ZeroDivisionError):
        view.submit(divmod, 1, 0).result(60)
    # Many of both at a time.
    theirs = shared.rc.load_balanced_view(targets=shared.ids).map_async(abs, range(-200, 0))
    assert list(view.map(abs, range(-200, 0))) == theirs.get(60) == list(range(200, 0, -1))


def test_what_calls_and_cells_print_is_kept_apart(shared, capfd):
    said = shared.run("print('of a cell')")
    shared.ours.submit(print, "of a call").result(60)
    assert capfd.readouterr().out == "of a call\n"
    assert said.stdout == "of a cell\n"
    assert shared.run("print('once more')").stdout == "once more\n"


def test_a_call_in_a_kernel_is_aborted(shared, tmp_path):
    view, pid = shared.ours, shared.one.apply_sync(os.getpid)
    begun = tmp_path / "begun"
    future = view.submit(exec, f"import pathlib, time; pathlib.Path({str(begun)!r}).touch(); time.sleep(600)")
    wait_for(begun.exists, "the call has begun")
    assert future.cancel()
    # The interpreter stays, and an interrupt is for nobody else.
    assert view.submit(os.getpid).result(60) == pid == shared.one.apply_sync(os.getpid)
    cell = shared.begun(SLEEP)
    shared.abort(cell)
    shared.fails(cell, "KeyboardInterrupt", "TaskAborted")
    assert view.submit(os.getpid).result(60) == pid


def test_a_call_that_ends_a_kernel(shared):
    view, pid = shared.ours, shared.one.apply_sync(os.getpid)
    with pytest.raises(ipbroker.EngineError, match="SIGKILL"):
        view.submit(os.kill, pid, signal.SIGKILL).result(60)
    assert view.submit(os.getpid).result(60) == shared.one.apply_sync(os.getpid) != pid
    # The other way round.
    shared.fails(shared.one.apply_async(os.kill, view.submit(os.getpid).result(60), signal.SIGKILL), "EngineError")
    assert view.submit(os.getpid).result(60) == shared.one.apply_sync(os.getpid)


def test_a_call_in_a_kernel_that_waits_for_another(shared):
    """Calls below it are worked on meanwhile; what ipyparallel's clients ask for comes after it."""

    def outer(n):
        import ipbroker

        view = ipbroker.current_client().view(tags=["shared"])
        return n if n == 0 else 1 + view.submit(outer, n - 1).result(60)

    future = shared.ours.submit(outer, 5)
    theirs = shared.one.apply_async(abs, -3)
    assert future.result(60) == 5 and theirs.get(60) == 3
