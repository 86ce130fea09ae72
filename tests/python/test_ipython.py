"""IPython parallel's programs in the documents, through ipyparallel on ipctl: the first half of the article about Bakapara (000),
and each snippet of IPython's page about its task interface (004), in order."""

import contextlib
import io
import os
import random
import re
import signal
import subprocess
import sys

import pytest

import documents
import ipbroker

ipp = pytest.importorskip("ipyparallel")
networkx = pytest.importorskip("networkx")

ENGINES = 4
"""As the page starts them; the article has 48."""


@pytest.fixture(scope="module")
def profiles(tmp_path_factory):
    """A controller of ours with IPython's own engines, under the names of the profiles in the documents."""
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("ipython")
        patch.setenv("IPYTHONDIR", str(place))
        for name in ["mezcal", "mpi"]:
            (place / f"profile_{name}").symlink_to("profile_default")
        with ipbroker.Cluster(n=0, profile="default", options=["--packer=json"]) as cluster:
            command = [sys.executable, "-m", "ipyparallel.engine", "--profile=default"]
            environment = dict(os.environ, PYTHONPATH=os.path.dirname(__file__))
            engines = [subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) for _ in range(ENGINES)]
            try:
                with cluster.client() as client:
                    client.wait_for_engines(ENGINES, 100)
                yield
            finally:
                for engine in engines:
                    engine.send_signal(signal.SIGKILL)
                    engine.wait()


def test_the_article(profiles):
    cut = documents.between(documents.text("000"), "クラスタ上でプログラムを実行する", "Bakaparaモジュール")
    for old, new in [
        ("from IPython.parallel", "from ipyparallel"),
        # What Python 3 writes otherwise.
        ("serial_result =  map(lambda x: x**2, range(50))", "serial_result = list(map(lambda x: x**2, range(50)))"),
        ("except OSError, e", "except OSError as e"),
        # A hundred jobs on 48 engines take half a minute; here are four.
        ("sleep 10", "sleep 0.1"),
    ]:
        assert old in cut
        cut = cut.replace(old, new)
    names, seen = {}, []
    for typed, shown in documents.session(cut):
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            value = documents.run(typed, names)
        seen.append(typed)
        if typed == "rc.ids":
            assert value == documents.run(shown, {})[:ENGINES]
        elif typed == "gethostname()":
            assert len(value) == ENGINES and all(isinstance(host, str) for host in value)
        elif typed == "parallel_result":
            first, last = shown.split("...")
            assert value[:4] == documents.run(first + "]", {}) and value[-1] == documents.run("[" + last, {})[0] and len(value) == 50
        elif typed == "ar.wait_interactive()":
            assert re.search(r"100/100|100%", out.getvalue()) and names["ar"].ready()
        elif shown:
            assert value == documents.run(shown, {})
    assert len(seen) == 17 + 1  # the article shows one prompt twice
    names["rc"].close()


class Page:
    """The page's prompts. It has lost the indentation within them, and has bars between its lines."""

    def __init__(self, text):
        lines = [line for line in text.splitlines() if line.strip("| ")]
        self.prompts = []
        for line in lines:
            if re.match(r"In \[\d+\]: ", line):
                self.prompts.append([line.split("]: ", 1)[1], None])
                inner = 0
            elif line.startswith("....:") and self.prompts:
                line = line[5:].strip()
                if re.match("@|def ", line):
                    inner = 0
                elif re.match("(@|def |with )", self.prompts[-1][0].splitlines()[-1].strip()):
                    inner = 4
                self.prompts[-1][0] += "\n" + " " * inner + line
            elif line.startswith("Out["):
                self.prompts[-1][1] = line.split("]: ", 1)[1]


def dostuff():
    return "stuff"


def test_the_page_of_the_task_interface(profiles):
    page = Page(documents.text("004"))
    changed = {
        "from IPython.parallel": "from ipyparallel",
        # Addresses are in connection files now.
        "Client('tcp://192.168.1.16:10101')": "Client(url_file)",
        "serial_result = map(lambda x:x**10, range(32))": "serial_result = list(map(lambda x:x**10, range(32)))",
        # What the page leaves to its reader, or forgets.
        "# contents of f": "    return f(a, b, c)",
        "client.block=False": "lview.block=False",
        "timeout=2.5)": "timeout=2.5):",
    }
    names = {
        "url_file": os.path.join(os.environ["IPYTHONDIR"], "profile_default", "security", "ipcontroller-client.json"),
        "f2": lambda: "f2",
        "f3": lambda: "f3",
        "g": lambda *args, **kwargs: True,
        "dargs": (1,),
        "dkwargs": {"x": 2},
        "args": (2,),
        "kwargs": {"y": 3},
    }
    seen, clients = [], []
    for typed, shown in page.prompts:
        for old, new in changed.items():
            typed = typed.replace(old, new)
        seen.append(typed)
        if typed.startswith("t = dependent(f"):
            # "in general": any function.
            names["f"] = lambda *args: args
        if "timeout=2.5" in typed:
            # However slow this machine is: what it follows has ended.
            names["ar"].wait(60)
        value = documents.run(typed, names)
        if typed.startswith("rc = "):
            clients.append(names["rc"])
            names["rc"].wait_for_engines(ENGINES, timeout=60)
            names["rc"][:].push({"dostuff": dostuff}, block=True)
        elif typed.startswith("lview = "):
            lview = names["lview"]
        elif typed.startswith("f.map"):
            # [0.0,10.0,160.0,...]
            assert list(value)[:3] == documents.run(shown.replace(",...", ""), {}) and len(value) == 32
        elif shown:
            assert value == documents.run(shown, {}), typed
        elif "def myfunc" in typed:
            with lview.temp_flags(block=True):
                assert lview.apply(names["myfunc"]) == "stuff"
        elif "mactask" in typed or "wintask" in typed:
            # No engine is on such a machine, and it waits for one; where it is this one's, it runs.
            name = "mactask" if "mactask" in typed else "wintask"
            with pytest.raises(ipp.error.RemoteError, match="TaskTimeout"), lview.temp_flags(block=True, timeout=0.5):
                lview.apply(names[name])
            here = ipp.dependent(dostuff, names["platform_specific"], sys.platform)
            with lview.temp_flags(block=True):
                assert lview.apply(here) == "stuff"
        elif typed.startswith("t = dependent") or "def t(a,b,c)" in typed:
            with lview.temp_flags(block=True):
                names["rc"][:].push({"f": names["f"]}, block=True)
                assert tuple(lview.apply(names["t"], 1, 2, 3)) == (1, 2, 3)
    assert tuple(names["ar"].get(60)) == ((2,), {"y": 3})
    assert names["ar2"].get(60) == "f2" and names["ar3"].get(60) == names["ar4"].get(60) == "f3"
    assert names["ar4"].metadata["engine_id"] == names["ar"].metadata["engine_id"]
    assert names["ar3"].metadata["started"] >= max(names["ar"].metadata["completed"], names["ar2"].metadata["completed"])
    assert len(seen) == len(re.findall(r"^In \[\d+\]: ", documents.text("004"), re.M)) == 26
    for client in clients:
        client.close()


@pytest.fixture(scope="module")
def lview(profiles):
    with contextlib.closing(ipp.Client()) as rc:
        rc.wait_for_engines(ENGINES, timeout=60)
        yield rc.load_balanced_view()


def fail():
    raise ValueError("failed")


@pytest.mark.parametrize(
    "all, success, failure, of, runs",
    [
        (True, True, False, "good good", True),
        (True, True, False, "good bad", False),  # "any dependencies failed and all=True, success=True, failure=False"
        (False, True, False, "good bad", True),
        (False, True, False, "bad bad", False),  # "all dependencies failed and all=False, success=True, failure=False"
        (True, False, True, "bad bad", True),  # "to be run only when tasks have failed"
        (True, False, True, "good bad", False),
        (False, False, True, "good bad", True),
        (True, True, True, "good bad", True),  # "always want the second task to run"
    ],
)
def test_switches_of_dependencies(lview, all, success, failure, of, runs):
    results = [lview.apply_async(dostuff if one == "good" else fail) for one in of.split()]
    dependency = ipp.Dependency(results, all=all, success=success, failure=failure)
    with lview.temp_flags(after=dependency):
        result = lview.apply_async(dostuff)
    if runs:
        assert result.get(60) == "stuff"
    else:
        with pytest.raises(ipp.error.RemoteError, match="ImpossibleDependency"):
            result.get(60)


def test_impossible_dependencies(lview):
    """The other two cases of the page's list."""
    with lview.temp_flags(after=["no-such-message"]), pytest.raises(ipp.error.RemoteError, match="ImpossibleDependency|InvalidDependency"):
        lview.apply_async(dostuff).get(60)
    one, two = lview.client.ids[:2]
    results = [lview.client.load_balanced_view(id).apply_async(dostuff) for id in (one, two)]
    with lview.temp_flags(follow=results), pytest.raises(ipp.error.RemoteError, match="ImpossibleDependency"):
        lview.apply_async(dostuff).get(60)


def test_timeout_retries_and_resubmit(lview, tmp_path):
    def sometimes(path):
        with open(path, "a") as file:
            file.write(".")
        with open(path) as file:
            assert len(file.read()) > 2
        return "third time"

    gate = tmp_path / "gate"

    def wait(path):
        import os
        import time

        while not os.path.exists(path):
            time.sleep(0.02)

    first = lview.apply_async(wait, str(gate))
    with lview.temp_flags(after=[first], timeout=0.1), pytest.raises(ipp.error.RemoteError, match="TaskTimeout|DependencyTimeout"):
        lview.apply_async(dostuff).get(60)
    gate.touch()
    first.get(60)
    with lview.temp_flags(retries=2):
        assert lview.apply_async(sometimes, str(tmp_path / "a")).get(60) == "third time"
    failed = lview.apply_async(sometimes, str(tmp_path / "b"))
    with pytest.raises(ipp.error.RemoteError):
        failed.get(60)
    again = lview.client.resubmit(failed.msg_ids)
    with pytest.raises(ipp.error.RemoteError):
        again.get(60)
    assert lview.client.resubmit(failed.msg_ids).get(60) == ["third time"]


@pytest.fixture(scope="module")
def graph():
    """A directed acyclic graph of NetworkX, as large as the page's link "DAG Dependencies" has it: 32 nodes, 128 edges."""
    pairs = [(before, node) for node in range(32) for before in range(node)]
    return networkx.DiGraph(random.Random(7).sample(pairs, 128))


def test_a_graph(lview, graph):
    """What that link shows: a task for each node, after those before it."""
    results = {}
    for node in networkx.topological_sort(graph):
        with lview.temp_flags(after=[results[before] for before in graph.predecessors(node)], block=False):
            results[node] = lview.apply(dostuff)
    lview.wait(results.values(), 60)
    assert {result.get(60) for result in results.values()} == {"stuff"}
    for before, node in graph.edges:
        assert results[node].metadata.started >= results[before].metadata.completed


def test_the_same_graph_through_our_views(client, graph):
    futures = {}
    for node in networkx.topological_sort(graph):
        after = [futures[before] for before in graph.predecessors(node)]
        futures[node] = client.view(after=after or None).submit(dostuff)
    assert {future.result(60) for future in futures.values()} == {"stuff"}
    for before, node in graph.edges:
        assert futures[node].info.started >= futures[before].info.completed
