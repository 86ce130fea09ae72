"""The standard library's own tests of executors (test.test_concurrent_futures), on ours.

Run where the interpreter ships them; else another Python of this machine that does is asked (see `main` below).
"""

import glob
import os
import re
import subprocess
import sys
import unittest

LEFT_OUT = {
    "test_max_workers_negative": "our executor has no max_workers: engines are the cluster's",
    "test_interpreter_shutdown": "makes its executor by itself, with max_workers (test_process.py does the same with a cluster)",
    "test_submit_after_interpreter_shutdown": "makes its executor by itself, with max_workers",
    "test_hang_gh83386": "makes its executor by itself, with a multiprocessing context",
    "test_hang_gh94440": "makes its executor by itself, with a multiprocessing context",
    "test_cancel_futures": "expects that what runs is not cancelled: ours stops a running call",
}


def suite():
    """The tests, on this package."""
    try:
        from test.test_concurrent_futures import executor, test_as_completed, test_shutdown, test_wait, util

        mixins = [executor.ExecutorTest, test_wait.WaitTests, test_as_completed.AsCompletedTests, test_shutdown.ExecutorShutdownTest]
        base = util.BaseTestCase
    except ImportError:
        from test import test_concurrent_futures as tests  # one file, up to Python 3.11

        mixins = [tests.ExecutorTest, tests.WaitTests, tests.AsCompletedTests, tests.ExecutorShutdownTest]
        base = getattr(tests, "BaseTestCase", unittest.TestCase)

    import ipbroker

    class OnCluster:
        worker_count = 5

        @classmethod
        def setUpClass(cls):
            cls.cluster = ipbroker.Cluster(n=cls.worker_count)
            cls.client = cls.cluster.client()
            # Each engine's Python starts at its first call.
            list(cls.client.executor().map(abs, range(50)))

        @classmethod
        def tearDownClass(cls):
            cls.cluster.close()

        def setUp(self):
            self.executor = self.executor_type()

        def tearDown(self):
            self.executor.shutdown()

        @property
        def executor_type(self):
            return self.client.executor

    whole = unittest.TestSuite()
    for mixin in mixins:
        names = {name: unittest.skip(why)(getattr(mixin, name)) for name, why in LEFT_OUT.items() if hasattr(mixin, name)}
        case = type("On" + mixin.__name__, (OnCluster, mixin, unittest.TestCase), names)
        # Some say whom they call super() of.
        assert base is not None
        whole.addTests(unittest.defaultTestLoader.loadTestsFromTestCase(case))
    return whole


def minor(python):
    found = re.search(r"3\.(\d+)", python)
    return int(found.group(1)) if found else sys.version_info.minor


def shipped(python):
    return subprocess.run([python, "-c", "import test.test_concurrent_futures"], capture_output=True).returncode == 0


def test_executor_tests_of_cpython():
    import cloudpickle
    import pytest

    import ipbroker

    others = glob.glob("/usr/bin/python3.[0-9]*") + glob.glob(os.path.expanduser("~/.pyenv/versions/3.*/bin/python"))
    for python in [sys.executable, *sorted(others, key=minor, reverse=True)]:
        if minor(python) >= 9 and shipped(python):
            break
    else:
        pytest.skip("no Python here ships test.test_concurrent_futures")

    # The package is of the stable ABI, cloudpickle is pure: another interpreter can take them from here.
    places = [os.path.dirname(os.path.dirname(module.__file__)) for module in (ipbroker, cloudpickle)]
    scripts = os.path.dirname(sys.executable)
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([os.path.dirname(__file__), *places]), PATH=f"{scripts}:{os.environ['PATH']}")
    done = subprocess.run([python, "-m", "unittest", "-v", "test_stdlib.load"], env=environment, capture_output=True, text=True, timeout=110)
    print(done.stderr)
    assert done.returncode == 0, done.stderr[-6000:]
    assert " ok\n" in done.stderr


def load():
    return suite()


if __name__ == "__main__":
    unittest.TextTestRunner(verbosity=2).run(suite())
