"""SCOOP's programs: the document's own (seeds/001), tasks that submit tasks, and what SCOOP's manual promises."""

import re
import subprocess
import sys
import textwrap

import pytest

import documents
import programs
from ipbroker.compat import scoop
from ipbroker.compat.scoop import futures, launcher, shared

LAUNCHER = [sys.executable, "-m", "ipbroker.compat.scoop"]


def launch(place, program, *arguments, before=(), options=("-n", "2"), status=0):
    """Runs a program under the launcher; what it wrote to its two streams."""
    (place / "program.py").write_text(textwrap.dedent(program))
    done = subprocess.run([*before, *LAUNCHER, *options, "program.py", *arguments], cwd=place, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    return done.stdout, done.stderr


def document(place, hosts, before=()):
    """Runs the document's program with the document's command line: its import and the names of its hosts are replaced."""
    (place / "scoop_test.py").write_text(programs.scoop_test())
    command = documents.cut(programs.SCOOP, "python -m scoop", "実行結果").strip()
    command = documents.replaced(command, "python -m scoop", "").split()
    shown = documents.cut(programs.SCOOP, "[2017-02-12 14:27:32,585] launcher", "last_value: の出力で")
    for old, new in hosts.items():
        command = [new if word == old else word for word in command]
        shown = shown.replace(old, new)
    done = subprocess.run([*before, *LAUNCHER, *command], cwd=place, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    return done.stderr, shown


def lines(log):
    """The lines of a log, without what differs: times, versions, this worker's name, by what workers were started, white space."""
    for old, new in [(r"^\[[\d :,-]+\]", "[TIME]"), (r"\([\d.:]+\)", "(WORKER)"), (r"SCOOP .*", "SCOOP VERSIONS"), (r"using [\w/]+$", "using PROGRAM"), (r"[ \t]+", " ")]:
        log = re.sub(old, new, log, flags=re.M)
    return [line for line in log.splitlines() if "last_value" not in line and "WARNING" not in line and line]


def processes(log):
    """What the document's program tells: how many calls each process has done."""
    (found,) = re.findall(r"scoop_test \([\w.:]+\) INFO +last_value : (\{.*\})", log)
    return eval(found)


def test_the_document_on_its_hosts(lab, tmp_path):
    version = subprocess.run([*lab.on("a"), "python3", "--version"], capture_output=True, text=True).stdout
    if not version.startswith(f"Python {sys.version_info[0]}.{sys.version_info[1]}."):
        pytest.skip(f"the hosts have {version}")
    log, shown = document(tmp_path, {"docker-host1": "a", "docker-host2": "b", "docker-host3": "127.0.0.1"}, lab.here)
    assert sorted(lines(log)) == sorted(lines(shown))
    done, there = processes(log), processes(shown)
    assert sum(done.values()) == sum(there.values()) == 1000 and 1 < len(done) <= len(there) == 16
    assert "a: its Python has no ipbroker" in log


def test_hosts_without_workers_are_named(lab, tmp_path):
    log, _ = document(tmp_path, {"docker-host1": "127.0.0.1", "docker-host2": "a", "docker-host3": "nosuch"}, lab.here)
    assert sum(processes(log).values()) == 1000
    assert "nosuch: no worker has started there" in log


def test_the_name_of_this_machine_is_told_to_workers(lab, tmp_path):
    program = """
        import json
        from ipbroker.compat.scoop import futures
        print(list(futures.map(abs, [-1, 2])), json.load(open(futures._view.client.connection_file))["location"])
        """
    # Another way to write its address: not what ipctl finds by itself.
    out, log = launch(tmp_path, program, before=lab.here, options=["--host", "a", "-n", "1", "--external-hostname", "10.77.1", "-b", "2"])
    assert out == "[1, 2] 10.77.1\n" and "no worker has started" not in log
    assert re.search(r"WARNING -b has no use here: there are no brokers", log)


def test_the_document_here(tmp_path):
    log, shown = document(tmp_path, {"docker-host1": "127.0.0.1", "docker-host2": "127.0.0.1", "docker-host3": "127.0.0.1"})
    assert "   127.0.0.1:\t15 + origin\n" in log
    assert [line for line in lines(log) if "127.0.0.1:" not in line and "launched" not in line] == [
        line.replace("3 host(s)", "1 host(s)") for line in lines(shown) if "127.0.0.1:" not in line and "launched" not in line
    ]
    assert sum(processes(log).values()) == 1000 and len(processes(log)) <= 16


def test_tasks_that_submit_tasks(tmp_path):
    out, _ = launch(
        tmp_path,
        """
        from ipbroker.compat.scoop import futures

        def fib(n):
            if n < 2:
                return n
            a, b = futures.submit(fib, n - 1), futures.submit(fib, n - 2)
            return a.result() + b.result()

        def chain(n):
            return 0 if n == 0 else 1 + futures.submit(chain, n - 1).result()

        def leaf(x):
            return x * x

        def outer(n):
            return sum(futures.map(leaf, range(n))) + sum(futures.map_as_completed(leaf, range(n)))

        def ended(n):
            tasks = [futures.submit(leaf, x) for x in range(n)]
            done, left = futures.wait(tasks)
            return len(done), len(left), sorted(task.result() for task in futures.as_completed(tasks))

        if __name__ == "__main__":
            print(futures.submit(fib, 9).result())
            print(futures.submit(chain, 30).result())
            print(list(futures.map(outer, [0, 1, 10, 500])))
            print(list(futures.map(ended, [0, 3])))
            print(futures.submit(futures.mapReduce, leaf, max, range(100)).result())
            print(futures.submit(futures.mapScan, leaf, int.__add__, range(5)).result())
        """,
    )
    assert out.splitlines() == ["34", "30", f"[0, 0, 570, {2 * sum(x * x for x in range(500))}]", "[(0, 0, []), (3, 0, [0, 1, 4])]", "9801", "[0, 1, 5, 14, 30]"]


def test_a_tree_of_depth_12_ends_on_two_workers(tmp_path):
    out, _ = launch(
        tmp_path,
        """
        from ipbroker.compat.scoop import futures

        def tree(level):
            return 1 if level == 0 else sum(futures.map(tree, [level - 1] * 2))

        if __name__ == "__main__":
            print(tree(12))
        """,
    )
    assert out == "4096\n"


def test_exceptions_of_inner_tasks_and_tasks_that_are_cancelled(tmp_path):
    out, _ = launch(
        tmp_path,
        """
        from ipbroker.compat.scoop import futures

        def bad(x):
            raise ValueError(f"bad {x}")

        def outer(x):
            try:
                return list(futures.map(bad, [x]))
            except ValueError as error:
                return f"caught {error}"

        def cancels(x):
            task = futures.submit(bad, x)
            return task.cancel() == task.cancelled()

        if __name__ == "__main__":
            print(futures.submit(outer, 1).result())
            print(futures.submit(cancels, 2).result())
            task = futures.submit(bad, 3)
            print(repr(task.exception()))
            print(len(futures.wait([task, futures.submit(abs, 1)], return_when=futures.FIRST_EXCEPTION).done) > 0)
            futures.submit(outer_that_is_not_there, 1)
        """,
        status=1,
    )
    assert out.splitlines() == ["caught bad 1", "True", "ValueError('bad 3')", "True"]


def test_modules_beside_the_program_are_found_by_workers(tmp_path):
    (tmp_path / "programs").mkdir()
    (tmp_path / "programs" / "beside.py").write_text("def double(x):\n    return 2 * x\n")
    text = """
        import beside
        from ipbroker.compat.scoop import futures
        if __name__ == "__main__":
            print(list(futures.map(beside.double, range(3))), __file__)
        """
    (tmp_path / "programs" / "main.py").write_text(textwrap.dedent(text))
    done = subprocess.run([*LAUNCHER, "-q", "-n", "1", "programs/main.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout == "[0, 2, 4] programs/main.py\n", done.stderr


def test_what_the_program_does_at_its_top_is_done_on_workers(tmp_path):
    (tmp_path / "state.py").write_text("factor = 1\ndef scaled(x):\n    return factor * x\n")
    program = """
        import sys
        import state
        from ipbroker.compat.scoop import futures
        state.factor = int(sys.argv[1])
        if __name__ == "__main__":
            print(list(futures.map(state.scaled, range(3))))
        """
    assert launch(tmp_path, program, "7")[0] == "[0, 7, 14]\n"
    # One that does not say what is its own is not run there.
    assert launch(tmp_path, program.replace('if __name__ == "__main__":', "if True:"), "7")[0] == "[0, 1, 2]\n"


def test_a_task_that_is_stopped_stops_its_tasks(tmp_path):
    out, _ = launch(
        tmp_path,
        """
        import os, sys, time
        from ipbroker.compat.scoop import futures

        def forever(at):
            open(f"begun-{at}", "w").close()
            time.sleep(1000)

        def outer():
            return list(futures.map(forever, range(20)))

        def until(there):
            end = time.monotonic() + 60
            while not there():
                if time.monotonic() > end:
                    sys.exit("it never came")
                time.sleep(0.01)

        if __name__ == "__main__":
            task = futures.submit(outer)
            until(lambda: len([name for name in os.listdir() if name.startswith("begun")]) == 2)
            print(task.cancel())
            view = futures._view
            until(lambda: not any(view.client.status()["tasks"][state] for state in ("ready", "running")))
            print(len({view(targets=[engine["uuid"]]).submit(os.getpid).result() for engine in view.client.engines}))
            print(len([name for name in os.listdir() if name.startswith("begun")]))
        """,
    )
    assert out.splitlines() == ["True", "2", "2"]


def test_constants_lambdas_methods_callbacks_and_names(tmp_path):
    out, log = launch(
        tmp_path,
        """
        import operator
        import sys
        from ipbroker.compat import scoop
        from ipbroker.compat.scoop import SIZE, futures, shared

        class Counter:
            def __init__(self, base):
                self.base = base
            def add(self, x, by=0):
                return self.base + x + by

        def read(name):
            return shared.getConst(name)

        def use(x):
            return shared.getConst("triple")(x) + shared.getConst("table")["one"]

        def set_there(value):
            shared.setConst(there=value)

        def about(_):
            scoop.logger.info("a task")
            return scoop.IS_RUNNING, scoop.IS_ORIGIN, scoop.SIZE, scoop.WORKER != worker

        if __name__ == "__main__":
            worker = scoop.WORKER
            print(sys.argv[1:], scoop.IS_RUNNING, scoop.IS_ORIGIN, scoop.SIZE, SIZE)
            shared.setConst(table={"one": 1}, triple=lambda x: 3 * x)
            print(list(futures.map(use, range(5))))
            try:
                shared.setConst(table=2)
            except TypeError as error:
                print(error)
            futures.submit(set_there, "far").result()
            print(shared.getConst("there"), set(futures.map(read, ["there"] * 20)), read("nothing"))
            print(list(futures.map(lambda x: operator.add(x, 1), range(3))), list(futures.map(Counter(5).add, range(3), by=10)))
            heard = []
            task = futures.submit(pow, 2, 3)
            task.add_done_callback(lambda task: heard.append(task.result()))
            futures.wait([task])
            print(heard, sorted(futures.map_as_completed(abs, [-1, -2])))
            print(futures.mapReduce(len, operator.add, ["a", "bb", "ccc"] * 20), futures.mapScan(len, operator.add, ["a", "bb", "ccc"]))
            print(set(futures.map(about, range(4))))
        """,
        "more",
        "-n",
    )
    assert out.splitlines() == [
        "['more', '-n'] True True 2 2",
        "[1, 4, 7, 10, 13]",
        "This constant already exists: table.",
        "far {'far'} None",
        "[1, 2, 3] [15, 16, 17]",
        "[8] [1, 2]",
        "120 [1, 3, 6]",
        "{(True, False, 2, True)}",
    ]
    assert re.search(r"\] .*\([\w.-]+:\d+\) INFO    a task", log)


def test_without_the_launcher():
    assert not scoop.IS_RUNNING and not scoop.IS_ORIGIN
    with pytest.warns(RuntimeWarning, match="was not started properly"):
        assert list(futures.map(abs, [-1, 2])) == [1, 2]
    for call in (lambda: futures.submit(abs, 1), lambda: shared.getConst("x"), lambda: scoop.SIZE):
        with pytest.raises(futures.NotStartedProperly, match="python -m ipbroker.compat.scoop"):
            call()


def test_where_the_controller_cannot_be_reached_tasks_do_their_tasks_themselves(monkeypatch):
    monkeypatch.setattr(futures, "_view", futures._Task(None))
    assert list(futures.map(abs, [-1, 2])) == [1, 2] == list(futures.map_as_completed(abs, [-1, 2]))
    tasks = [futures.submit(divmod, 7, at) for at in (2, 0)]
    assert futures.wait(tasks).done == set(tasks) == set(futures.as_completed(tasks))
    assert tasks[0].result() == (3, 1) and isinstance(tasks[1].exception(), ZeroDivisionError)
    assert futures.mapReduce(abs, max, [-3, 2]) == 3
    with pytest.raises(TypeError, match="nothing to map"):
        futures.mapReduce(abs, max, [])


@pytest.mark.parametrize(
    "hosts, n, shares",
    [
        ("a b c", 16, "a:6 b:5 c:5"),
        ("a a b", None, "a:2 b:1"),
        ("a a b", 2, "a:2"),
        ("a b", 1, "a:1"),
        ("a", 4, "a:4"),
    ],
)
def test_workers_are_shared_out(hosts, n, shares):
    assert launcher.share_out([(host, 1) for host in hosts.split()], n) == [(pair.split(":")[0], int(pair.split(":")[1])) for pair in shares.split()]


def test_what_is_wrong_is_said_in_one_line(tmp_path):
    (tmp_path / "hosts").write_text("a 3\n# none\nb\nc slots=2\n")
    assert launcher.hosts_of_file(str(tmp_path / "hosts")) == [("a", 3), ("b", 0), ("c", 2)]
    (tmp_path / "wrong").write_text("a three\n")
    for words, said in [
        (["nothing.py"], "there is no program nothing.py"),
        (["--host", "a", "program.py"], "name a program"),
        (["-n", "0", __file__], "-n is at least 1"),
        (["--hostfile", "wrong", __file__], "wrong:1: expected `host [workers]`, found 'a three'"),
        (["--hostfile", "none", __file__], "No such file or directory: 'none'"),
    ]:
        done = subprocess.run([*LAUNCHER, *words], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1 and done.stderr.startswith("scoop: ") and said in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("end, status, said", [("sys.exit(3)", 3, ""), ("sys.exit('why')", 1, "why\n"), ("1 / 0", 1, "ZeroDivisionError"), ("pass", 0, "")])
def test_the_programs_exit_status_is_the_launchers(tmp_path, end, status, said):
    _, log = launch(tmp_path, f"import sys\n{end}\n", options=["-q", "-n", "1"], status=status)
    assert said in log and "launcher.py" not in log
