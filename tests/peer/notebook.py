"""What a notebook does with ipyparallel, once each, on `ipctl`: both packers, with and without CURVE.

    python tests/peer/notebook.py [--ipctl PATH] [--only NAME]

Starts its own controller and two Python engines (of $IPENGINE, if that is set) for each kind of cluster. Our `ipclient` and `ipengine` are those
beside `ipctl`. Parts whose library is not installed (joblib, dask.distributed) say so. Exit status 0: everything behaved.
"""

import argparse
import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import ipyparallel as ipp
from ipyparallel import error

import launchers
from ipctl_plugin import find_ipctl

KINDS = {
    "msgpack": ["--packer=msgpack"],
    "json": ["--packer=json"],
    "msgpack+curve": ["--packer=msgpack", "--curve"],
    "json+curve": ["--packer=json", "--curve"],
}


def wait_for(condition, what, timeout=20):
    """Wait until a condition holds."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"{what}: not within {timeout} s")


@contextlib.contextmanager
def raises(*allowed):
    """The block fails with a remote (or local) error of one of these names."""
    try:
        yield
    except error.CompositeError as composite:
        names = {one[0] for one in composite.elist}
        assert names <= set(allowed), names
    except error.RemoteError as remote:
        assert remote.ename in allowed, remote.ename
    except Exception as local:
        assert type(local).__name__ in allowed, repr(local)
    else:
        raise AssertionError(f"none of {allowed} was raised")


def double(x):
    return 2 * x


def sleep(seconds):
    import time

    # In small steps, so that a signal interrupts it at once.
    for _ in range(int(seconds * 50)):
        time.sleep(0.02)
    return seconds


class Notebook:
    """The cells. Each method is one; they run in order of definition."""

    def __init__(self, rc, profile_dir, programs):
        self.rc = rc
        self.all = rc[:]
        self.balanced = rc.load_balanced_view()
        self.profile_dir = profile_dir
        self.programs = programs
        self.connection = json.loads((Path(profile_dir) / "security" / "ipcontroller-client.json").read_text())

    def another_client(self):
        return ipp.Client(profile_dir=self.profile_dir)

    def ours(self, *arguments):
        """What our `ipclient` prints, and what it says."""
        command = [self.programs / "ipclient", f"--profile-dir={self.profile_dir}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout, done.stderr

    def apply(self):
        assert self.all.apply_sync(double, 21) == [42, 42]
        assert self.balanced.apply_sync(double, 4) == 8
        with raises("ZeroDivisionError"):
            self.rc[0].apply_sync(lambda: 1 / 0)

    def execute(self):
        self.all.execute("a = 17", block=True)
        assert self.all["a"] == [17, 17]
        result = self.rc[0].execute("print('hello'); a + 1", silent=False)
        result.get(timeout=10)
        result.wait_for_output(10)
        assert result.stdout == "hello\n", result.stdout
        assert result.execute_result["data"]["text/plain"] == "18"

    def maps(self):
        assert self.all.map_sync(double, range(10)) == list(map(double, range(10)))
        assert self.balanced.map_sync(double, range(10)) == list(map(double, range(10)))
        assert sorted(self.balanced.imap(double, range(6), ordered=False)) == [0, 2, 4, 6, 8, 10]

    def broadcast(self):
        assert self.rc.broadcast_view().apply_sync(double, 3) == [6, 6]
        coalescing = self.rc.broadcast_view(is_coalescing=True)
        assert coalescing.apply_sync(double, 3) == [6, 6]
        assert coalescing.apply_async(double, 4).get(10) == [8, 8]
        with raises("ZeroDivisionError"):
            coalescing.apply_sync(lambda: 1 / 0)

    def push_pull(self):
        self.all.push({"b": [1, 2], "c": "x" * 100_000}, block=True)
        assert self.all.pull("b", block=True) == [[1, 2], [1, 2]]
        assert self.rc[1].pull(("b", "c"), block=True) == [[1, 2], "x" * 100_000]

    def scatter_gather(self):
        self.all.scatter("part", list(range(8)), block=True)
        assert self.all["part"] == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert list(self.all.gather("part", block=True)) == list(range(8))

    def magics(self):
        from IPython.core.interactiveshell import InteractiveShell
        from traitlets.config import Config

        main = sys.modules["__main__"]
        shell = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
        # The shell puts a module of its own there; our functions are in this one.
        sys.modules["__main__"] = main
        self.all.block = True
        self.all.activate()
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            shell.run_line_magic("px", "print('from an engine')")
        self.all.block = False
        assert out.getvalue().count("from an engine") == 2, out.getvalue()

    def dependencies(self):
        first = self.balanced.apply_async(double, 1)
        with self.balanced.temp_flags(after=[first]):
            assert self.balanced.apply_async(double, 2).get(10) == 4
        with self.balanced.temp_flags(after=["no-such-task"]):
            with raises("InvalidDependency"):
                self.balanced.apply_async(double, 2).get(10)

    def abort(self):
        view = self.rc.load_balanced_view(targets=[0])
        running = view.apply_async(sleep, 1)
        waiting = view.apply_async(double, 1)
        waiting.abort()
        with raises("TaskAborted"):
            waiting.get(10)
        assert running.get(10) == 1

    def abort_running(self):
        # What `ipclient abort` asks: the controller interrupts the engine while it is busy with this very task.
        def abort(result):
            content = {"msg_ids": result.msg_ids, "kill": True}
            return self.rc._send_recv(self.rc._query_stream, "abort_request", content)["content"]

        neighbour = self.rc[1].apply_async(sleep, 2)
        balanced = self.rc.load_balanced_view(targets=[0]).apply_async(sleep, 30)
        # Our own engines may have the other one already, too.
        wait_for(lambda: self.rc.queue_status()[0]["tasks"] >= 1, "the task is on its engine")
        reply = abort(balanced)
        assert (reply["status"], reply["stopping"]) == ("ok", 1), reply
        with raises("TaskAborted"):
            balanced.get(5)
        direct = self.rc[0].apply_async(sleep, 30)
        wait_for(lambda: self.rc.queue_status()[0]["queue"] == 1, "the task is on its engine")
        assert abort(direct)["stopping"] == 1
        # Interrupted, or ended before it began.
        with raises("KeyboardInterrupt", "TaskAborted"):
            direct.get(5)
        assert neighbour.get(10) == 2
        assert abort(direct)["done"] == direct.msg_ids

    def abort_with_ipclient(self):
        first = self.rc.load_balanced_view(targets=[0])
        running = first.apply_async(sleep, 30)
        waiting = first.apply_async(double, 1)
        direct = self.rc[1].apply_async(sleep, 30)
        wait_for(lambda: self.rc.queue_status()[0]["tasks"] >= 1, "the task is on its engine")
        wait_for(lambda: self.rc.queue_status()[1]["queue"] == 1, "the direct task is on its engine")
        tasks = json.loads(self.ours("status", "--json")[0])["tasks"]
        assert (tasks["ready"] + tasks["running"], tasks["direct"]) == (2, 1), tasks
        ids = running.msg_ids + waiting.msg_ids + direct.msg_ids
        said = self.ours("abort", *ids)[1]
        assert sum(map(int, re.findall(r"(\d+) (?:aborted|being stopped)", said))) == 3, said
        for result in (running, waiting):
            with raises("TaskAborted"):
                result.get(5)
        with raises("KeyboardInterrupt", "TaskAborted"):
            direct.get(5)
        # The engines are as good as before.
        assert self.all.apply_sync(double, 3) == [6, 6]

    def clear(self):
        self.all.push({"gone": 1}, block=True)
        self.rc.clear(block=True)
        with raises("NameError"):
            self.all.pull("gone", block=True)

    def signals(self):
        def told_sleep():
            import sys
            import time

            print("begun")
            sys.stdout.flush()
            for _ in range(1000):
                time.sleep(0.02)

        running = self.all.apply_async(told_sleep)
        wait_for(lambda: all("begun" in out for out in running.stdout), "both have begun")
        self.rc.send_signal(signal.SIGINT, block=True)
        with raises("KeyboardInterrupt"):
            running.get(10)

    def queue_status(self):
        running = self.all.apply_async(sleep, 0.5)
        wait_for(lambda: self.rc.queue_status()[0]["queue"] == 1, "the queue holds the task")
        verbose = self.rc.queue_status(verbose=True)
        assert set(verbose[0]["queue"]) <= set(running.msg_ids)
        running.get(10)
        wait_for(lambda: self.rc.queue_status()[0]["queue"] == 0, "the queue is empty")
        assert self.rc.queue_status()["unassigned"] == 0

    def result_status(self):
        other = self.another_client()
        done = self.balanced.apply_async(double, 5)
        done.get(10)
        running = self.rc[0].apply_async(sleep, 1)
        wait_for(lambda: self.rc.queue_status()[0]["queue"] == 1, "the task is there")
        status = other.result_status(done.msg_ids + running.msg_ids)
        assert status["completed"] == done.msg_ids and status["pending"] == running.msg_ids, status
        running.get(10)
        with raises("KeyError"):
            other.result_status(["no-such-task"])
        other.close()

    def get_result(self):
        mine = self.balanced.apply_async(double, 6)
        direct = self.rc[1].apply_async(double, 7)
        failed = self.balanced.apply_async(lambda: 1 / 0)
        printed = self.rc[0].execute("print('seen by another')", silent=False)
        for result in (mine, direct, printed):
            result.get(10)
        failed.wait(10)
        printed.wait_for_output(10)
        other = self.another_client()
        assert other.get_result(mine.msg_ids).get(10) == [12]
        assert other.get_result(direct.msg_ids[0]).get(10) == 14
        wait_for(lambda: "seen by another" in self.record(printed)["stdout"], "the output is recorded")
        assert "seen by another" in other.get_result(printed.msg_ids[0]).stdout
        with raises("ZeroDivisionError"):
            other.get_result(failed.msg_ids[0]).get(10)
        other.close()

    def record(self, result):
        return self.rc.db_query({"msg_id": result.msg_ids[0]})[0]

    def history_and_queries(self):
        before = len(self.rc.hub_history())
        results = [self.balanced.apply_async(double, n) for n in range(3)]
        self.rc.wait(results, timeout=10)
        ids = [result.msg_ids[0] for result in results]
        wait_for(lambda: len(self.rc.hub_history()) == before + 3, "history holds the tasks")
        found = self.rc.db_query({"msg_id": {"$in": ids}}, keys=["engine_uuid", "completed"])
        assert len(found) == 3 and set(found[0]) == {"msg_id", "engine_uuid", "completed"}, found
        submitted = self.rc.db_query({"msg_id": ids[0]})[0]["submitted"]
        later = self.rc.db_query({"submitted": {"$gt": submitted}, "completed": {"$ne": None}}, keys=["msg_id"])
        missing = set(ids[1:]) - {record["msg_id"] for record in later}
        assert not missing, (missing, later)
        same = {"msg_id": {"$in": ids}}
        for condition, count in (
            ({"msg_id": ids[0]}, 1),
            ({"msg_id": {"$eq": ids[0]}}, 1),
            ({"msg_id": {"$ne": ids[0], "$in": ids}}, 2),
            ({"msg_id": {"$in": ids, "$nin": ids[:2]}}, 1),
            (dict(same, submitted={"$lt": submitted}), 0),
            (dict(same, submitted={"$lte": submitted}), 1),
            (dict(same, submitted={"$gt": submitted}), 2),
            (dict(same, submitted={"$gte": submitted}), 3),
            (dict(same, completed={"$exists": True}), 3),
            (dict(same, resubmitted={"$exists": True}), 0),
            ({"msg_id": {"$glob": ids[0][:-1] + "*", "$in": ids}}, len([i for i in ids if i[:-1] == ids[0][:-1]])),
        ):
            found = self.rc.db_query(condition, keys=["msg_id"])
            assert len(found) == count, (condition, count, found)
            assert all(set(record) == {"msg_id"} for record in found)
        with raises("KeyError"):
            self.rc.db_query({"no_such_key": 1})
        with raises("KeyError"):
            self.rc.db_query({"msg_id": ids[0]}, keys=["no_such_key"])
        # Output of broadcasts has records, too, that are no submissions.
        assert not self.rc.db_query({"msg_id": {"$nin": self.rc.hub_history()}, "submitted": {"$ne": None}})
        buffers = self.rc.db_query({"msg_id": ids[0]}, keys=["buffers", "result_buffers"])[0]
        assert buffers["buffers"] and buffers["result_buffers"]

    def purge(self):
        result = self.balanced.apply_async(double, 8)
        result.get(10)
        before = len(self.rc.hub_history())
        self.rc.purge_hub_results(result)
        assert len(self.rc.hub_history()) == before - 1
        running = self.rc[0].apply_async(sleep, 0.5)
        wait_for(lambda: self.rc.queue_status()[0]["queue"] == 1, "the task is there")
        with raises("IndexError"):
            self.rc.purge_hub_results(running)
        running.get(10)
        # All that one engine ever did, and then everything.
        last = self.balanced.apply_async(double, 8)
        last.get(10)
        self.rc.purge_hub_results(targets=[0])
        uuid = self.rc._engines[0]
        assert not self.rc.db_query({"engine_uuid": uuid}, keys=["msg_id"])
        self.rc.purge_hub_results("all")
        assert self.rc.hub_history() == []

    def resubmit(self):
        result = self.balanced.apply_async(double, 9)
        result.get(10)
        assert self.rc.resubmit(result.msg_ids).get(10) == [18]
        record = wait_for(lambda: self.record(result)["resubmitted"], "the record names the new task")
        assert record != result.msg_ids[0]
        with raises("KeyError"):
            self.rc.resubmit(["no-such-task"])

    def labels(self):
        for view in (self.balanced, self.rc[0]):
            result = view.set_flags(label="a label").apply_async(double, 1)
            result.get(10)
            wait_for(lambda: self.record(result)["label"] == "a label", "the label is recorded")
            view.set_flags(label=None)
        found = self.rc.db_query({"label": "a label"}, keys=["label"])
        assert len(found) == 2, found

    def data_pub(self):
        def publish():
            import time

            from ipyparallel.engine.datapub import publish_data

            publish_data({"step": 3})
            time.sleep(0.2)

        result = self.rc[0].apply_async(publish)
        wait_for(lambda: result.data.get("step") == 3, "the data arrived")
        result.get(10)

    def spin_threads(self):
        # They do nothing in this version, and must go on doing it.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.rc.spin_thread()
            self.rc.spin()
            self.rc.stop_spin_thread()

    def executor(self):
        executor = self.rc.executor()
        assert executor.submit(double, 5).result(10) == 10
        assert list(executor.map(double, range(3))) == [0, 2, 4]
        executor.shutdown()

    def joblib(self):
        try:
            from joblib import Parallel, delayed, parallel_backend
        except ImportError:
            return "joblib is not installed"
        self.balanced.register_joblib_backend()
        with parallel_backend("ipyparallel"):
            assert Parallel(n_jobs=2)(delayed(abs)(-n) for n in range(5)) == [0, 1, 2, 3, 4]

    def become_dask(self):
        try:
            import distributed  # noqa: F401
        except ImportError:
            with raises("ModuleNotFoundError"):
                self.rc.become_dask()
            return "dask.distributed is not installed"
        dask = self.rc.become_dask(scheduler_args={"dashboard_address": None})
        assert dask.submit(sum, [1, 2, 3]).result(20) == 6
        dask.close()
        self.rc.stop_dask()

    def both_kinds_of_engine(self):
        ipengine = subprocess.Popen(
            [self.programs / "ipengine", "-n", "1", f"--profile-dir={self.profile_dir}"], stderr=subprocess.DEVNULL
        )
        try:
            wait_for(lambda: len(self.rc.ids) == 3, "our engine is there")
            kinds = {engine["id"]: engine["kind"] for engine in json.loads(self.ours("engines", "--json")[0])}
            peers = "ipengine" if os.environ.get("IPENGINE") else "python"
            assert kinds == {0: peers, 1: peers, 2: "ipengine"}, kinds
            table = self.ours("engines")[0]
            assert table.count("ipengine") == list(kinds.values()).count("ipengine"), table
            # Each kind gets what it can do.
            assert self.balanced.map_sync(double, range(20)) == list(map(double, range(20)))
            assert self.ours("map", "-k", "echo {}", ":::", "a", "b")[0] == "a\nb\n"
        finally:
            ipengine.terminate()
            ipengine.wait(10)
        wait_for(lambda: len(self.rc.ids) == 2, "our engine is gone")

    def without_msgpack(self):
        # As on a machine that has no msgpack package: the client says what is missing.
        code = (
            "import sys\n"
            "class Missing:\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            "        if name.split('.')[0] == 'msgpack': raise ModuleNotFoundError(\"No module named 'msgpack'\")\n"
            "sys.meta_path.insert(0, Missing())\n"
            "import ipyparallel as ipp\n"
            "print(len(ipp.Client(sys.argv[1], timeout=30).ids))\n"
        )
        file = Path(self.profile_dir) / "security" / "ipcontroller-client.json"
        done = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, timeout=60)
        if self.connection["pack"] == "json":
            assert done.stdout == "2\n", done
        else:
            last = done.stderr.strip().splitlines()[-1]
            assert last == "ModuleNotFoundError: No module named 'msgpack'", done

    def curve(self):
        if not self.rc.curve_serverkey:
            return "no CURVE in this cluster"
        assert self.connection["key"] == ""
        for key in (None, "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"):
            wrong = dict(self.connection, curve_serverkey=key)
            with raises("TimeoutError"):
                ipp.Client(wrong, timeout=1)
            with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
                json.dump(wrong, file)
                file.flush()
                command = [self.programs / "ipclient", f"--file={file.name}", "--connect-timeout=1", "status"]
                done = subprocess.run(command, capture_output=True, text=True, timeout=60)
                assert done.returncode != 0 and not done.stdout and done.stderr.count("\n") == 1, done
        # Engines with another key end without having been registered.
        with open(Path(self.profile_dir) / "security" / "ipcontroller-engine.json") as file:
            engine = dict(json.load(file), curve_serverkey=key)
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(engine, file)
            file.flush()
            theirs = [sys.executable, "-m", "ipyparallel.engine", f"--file={file.name}", "--timeout=2"]
            ours = [self.programs / "ipengine", f"--file={file.name}", "--grace=2"]
            engines = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
                       for command in (theirs, ours)]
            for process in engines:
                said = process.communicate(timeout=60)[1]
                assert process.returncode != 0, said
        assert self.rc.ids == [0, 1]
        # Nobody else was disturbed.
        assert self.all.apply_sync(double, 3) == [6, 6]

    def shutdown_engine(self):
        self.rc.shutdown(targets=[1], block=True)
        wait_for(lambda: self.rc.ids == [0], "the engine is gone")
        assert self.rc[:].apply_sync(double, 1) == [2]

    def shutdown_hub(self):
        self.rc.shutdown(hub=True, block=True)


def cells():
    names = list(vars(Notebook))
    skip = {"another_client", "ours", "record"}
    return [name for name in names if not name.startswith("__") and name not in skip]


def run(ipctl, name, options):
    """One cluster: all cells."""
    failures = 0
    with tempfile.TemporaryDirectory() as directory:
        profile = Path(directory) / "profile_notebook"
        env = {key: value for key, value in os.environ.items() if not key.startswith("IPP_")}
        env["IPYTHONDIR"] = directory
        os.environ["IPYTHONDIR"] = directory
        log = open(Path(directory) / "log", "w+")
        begin = [ipctl, f"--profile-dir={profile}", "--ping=250", *options]
        engine = [*launchers.engine(), f"--profile-dir={profile}"]
        controller = subprocess.Popen(begin, env=env, stdout=log, stderr=log)
        engines = []
        try:
            file = profile / "security" / "ipcontroller-client.json"
            wait_for(lambda: file.exists() or controller.poll() is not None, "connection file")
            engines = [subprocess.Popen(engine, env=env, stdout=log, stderr=log) for _ in range(2)]
            rc = ipp.Client(profile_dir=str(profile), timeout=60)
            rc.wait_for_engines(2, timeout=120)
            notebook = Notebook(rc, str(profile), Path(ipctl).resolve().parent)
            for cell in cells():
                started = time.monotonic()
                try:
                    note = getattr(notebook, cell)()
                    word = f"ok{f' ({note})' if note else ''}"
                except Exception as problem:
                    failures += 1
                    word = f"FAILED: {type(problem).__name__}: {problem}"
                print(f"{name:14} {cell:20} {time.monotonic() - started:6.2f} s  {word}", flush=True)
            status = controller.wait(10)
            if status != 0 or file.exists():
                failures += 1
                print(f"{name}: the controller ended with {status}, connection file left: {file.exists()}")
        finally:
            for process in [controller, *engines]:
                if process.poll() is None:
                    process.terminate()
            for process in [controller, *engines]:
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
            if failures:
                log.seek(0)
                print(log.read()[-6000:])
            log.close()
    return failures


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ipctl", help="the program (default: as the pytest plugin finds it)")
    parser.add_argument("--only", choices=KINDS, help="one kind of cluster")
    options = parser.parse_args()
    ipctl = options.ipctl or find_ipctl()
    failures = sum(run(ipctl, name, KINDS[name]) for name in KINDS if options.only in (None, name))
    print("all cells behaved" if not failures else f"{failures} cell(s) failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
