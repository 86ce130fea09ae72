"""Others' doors: joblib, ipyparallel, notebooks."""

import os
import subprocess
import sys
import textwrap

import pytest

import calls


def test_joblib(client):
    joblib = pytest.importorskip("joblib")
    import ipbroker.joblib

    ipbroker.joblib.register(client)
    with joblib.parallel_config("ipbroker"):
        assert joblib.Parallel()(joblib.delayed(calls.square)(x) for x in range(500)) == [x * x for x in range(500)]
        pids = set(joblib.Parallel()(joblib.delayed(calls.pid)() for _ in range(20)))
        assert os.getpid() not in pids
        with pytest.raises(ValueError, match="no value"):
            joblib.Parallel()(joblib.delayed(calls.fail)() for _ in range(3))
        unordered = joblib.Parallel(return_as="generator_unordered")(joblib.delayed(calls.square)(x) for x in range(20))
        assert sorted(unordered) == [x * x for x in range(20)]
    with joblib.parallel_config("ipbroker", retries=1):
        assert joblib.Parallel()([joblib.delayed(calls.square)(3)]) == [9]
        # None changes what the others are given.
        assert joblib.Parallel(batch_size=1)(joblib.delayed([].__iadd__)([0]) for _ in range(9)) == [[0]] * 9
    with pytest.raises(TypeError, match="unknown option 'retry'"):
        with joblib.parallel_config("ipbroker", retry=1):
            joblib.Parallel()([joblib.delayed(calls.square)(3)])


def test_scikit_learn(client):
    pytest.importorskip("sklearn")
    joblib = pytest.importorskip("joblib")
    from sklearn.datasets import load_iris
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import SVC

    import ipbroker.joblib

    ipbroker.joblib.register(client)
    with joblib.parallel_config("ipbroker"):
        search = GridSearchCV(SVC(), {"C": [0.1, 1, 10]}, cv=3).fit(*load_iris(return_X_y=True))
    assert search.best_score_ > 0.9


def test_ipyparallel_finds_our_controller(tmp_path):
    pytest.importorskip("ipyparallel")
    code = """
        import ipyparallel as ipp
        cluster = ipp.Cluster(controller="ipbroker", n=1)
        rc = cluster.start_and_connect_sync()
        assert "ipctl" in open(f"/proc/{cluster.controller.pid}/cmdline").read(), cluster.controller
        print(rc[:].apply_sync(lambda: 6 * 7))
        rc.close()
        cluster.stop_cluster_sync()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, env=dict(os.environ, IPYTHONDIR=str(tmp_path)), capture_output=True, text=True, timeout=110)
    assert done.returncode == 0 and "[42]" in done.stdout, done.stderr


@pytest.mark.parametrize("controller", ["ipbroker", "local"])
def test_ipyparallel_starts_our_engines(tmp_path, controller):
    """With our controller, and with ipyparallel's own: started, signalled, restarted and stopped as that package's engines are."""
    pytest.importorskip("ipyparallel")
    code = """
        import os, signal, sys, time
        import ipyparallel as ipp

        def interrupted():
            import time
            print("begun", flush=True)
            time.sleep(600)

        with ipp.Cluster(controller=sys.argv[1], engines="ipbroker", n=2) as rc:
            engines = rc.cluster.engine_set
            assert "--kernel=ipyparallel" in open(f"/proc/{engines.pid}/cmdline").read()
            pids = rc[:].apply_sync(os.getpid)
            running = rc[:].apply_async(interrupted)
            while not all(running.stdout):
                time.sleep(0.02)
            rc.cluster.signal_engines_sync(signal.SIGINT)
            assert {error.ename for error in running.get(60, return_exceptions=True)} == {"KeyboardInterrupt"}
            assert rc[:].apply_sync(os.getpid) == pids
            ids = rc.ids
            rc.cluster.restart_engines_sync()
            while set(ids) & set(rc.ids):
                time.sleep(0.02)
            rc.wait_for_engines(2, timeout=60)
            assert not set(pids) & set(rc[:].apply_sync(os.getpid))
            engines = rc.cluster.engine_set
        assert "Completed registration with id" in engines.get_output()
        print("all of it")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), controller], cwd=tmp_path, env=dict(os.environ, IPYTHONDIR=str(tmp_path)), capture_output=True, text=True, timeout=110)
    assert done.returncode == 0 and "all of it" in done.stdout, done.stderr


def test_a_notebook_shows_what_there_is(tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    cells = [
        "import ipbroker\ncluster = ipbroker.Cluster(n=2)\nclient = cluster.client()\ncluster",
        "def f(x):\n    print('seen', x)\n    return x + 1\nclient.submit(f, 41).result()",
        "client.engines",
        "jobs = client.run([{'cmd': 'sleep 0.1'}] * 6)\njobs.progress()",
        "await client.submit(f, 1)",
        "cluster.close()",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    os.environ["IPYTHONDIR"] = str(tmp_path)
    client = nbclient.NotebookClient(notebook, timeout=100, resources={"metadata": {"path": str(tmp_path)}}, kernel_name="python3")
    client.execute()
    shown = ["".join(output.get("text", "") for output in cell.outputs) + str(cell.outputs) for cell in notebook.cells]
    assert "<table" in shown[0] and "ipbroker.Client" in shown[0]
    assert "42" in shown[1] and "seen 41" in shown[1]
    assert "2 engines" in shown[2] and "<table" in shown[2]
    assert "IntProgress" in shown[3] or "6 of 6" in shown[3] or "6/6" in shown[3]
    assert "2" in shown[4]
