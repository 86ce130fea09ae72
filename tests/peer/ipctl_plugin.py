"""pytest plugin: ipyparallel's own test suite with `ipctl` in place of `ipcontroller`, and `ipengine` in place of its engines.

    IPCTL=target/release/ipctl IPENGINE=target/release/ipengine PYTHONPATH=tests/peer pytest -p ipctl_plugin --pyargs ipyparallel.tests

Every launcher's commands are replaced (`launchers.py`), in this process and, through `site/sitecustomize.py`, in those
that the tests start (`ipcluster`). With $IPCTL_PEER=1 the controller stays the peer's own, and without $IPENGINE the engines. The suite's limits for
starting engines are made longer ($IPCTL_PATIENCE times, 4 by default): Python engines take seconds on a busy machine.
"""

import os
import shutil
import sys
import time
import types
from pathlib import Path

import launchers

HERE = Path(__file__).resolve().parent


def find_ipctl():
    """The program under test: $IPCTL, or the newest build of this workspace."""
    given = os.environ.get("IPCTL")
    if given:
        return str(Path(given).resolve(strict=True))
    builds = [HERE.parent.parent / "target" / kind / "ipctl" for kind in ("release", "debug")]
    found = [build for build in builds if build.exists()]
    if found:
        return str(max(found, key=lambda build: build.stat().st_mtime))
    on_path = shutil.which("ipctl")
    if on_path is None:
        raise RuntimeError("no ipctl: build it, or set $IPCTL")
    return on_path


def be_patient(factor):
    """Make the suite's own limits longer; none of them is what a test is about."""
    tests = sys.modules.get("ipyparallel.tests")
    if tests is None:
        return
    # Its limits for controller and engines to start are written into the functions: there, time passes more slowly.
    tests.time = types.SimpleNamespace(sleep=time.sleep, time=lambda: time.time() / factor)
    case = getattr(sys.modules.get("ipyparallel.tests.clienttest"), "ClusterTestCase", None)
    if case is not None:
        case.timeout *= factor
        case.test_timeout *= factor
        for function in (case.wait_on_engines, case._wait_for):
            function.__defaults__ = tuple(limit * factor for limit in function.__defaults__)
    cluster = sys.modules.get("ipyparallel.tests.test_cluster")
    if cluster is not None:
        cluster._timeout *= factor


def wait_for_kernels():
    """The suite's limits are made for calls on engines whose interpreters run: the peer's are registered after that, ours before
    (what comes meanwhile is kept). So who adds engines waits for a first call on each. And the peer's end with their interpreter,
    ours after they have said what became of its calls: so who counts engines first waits until those have left."""
    tests = sys.modules.get("ipyparallel.tests")
    cases = sys.modules.get("ipyparallel.tests.clienttest")
    if tests is None or cases is None:
        return
    add = tests.add_engines

    def all_answer(rc):
        try:
            return not rc.ids or rc[:].apply_sync(int)
        except tests.error.CompositeError:
            return False

    def add_engines(n=1, profile="iptest", total=False):
        with tests.Client(profile=profile) as rc:
            end = time.monotonic() + 20
            while not all_answer(rc):
                assert time.monotonic() < end, "an engine without a kernel does not leave"
                time.sleep(0.05)
        engines = add(n, profile, total)
        if engines:
            with tests.Client(profile=profile) as rc:
                rc[rc.ids[-len(engines) :]].apply_sync(int)
        return engines

    tests.add_engines = cases.add_engines = add_engines


def pytest_collection_finish(session):
    be_patient(int(os.environ.get("IPCTL_PATIENCE", "4")))
    if os.environ.get("IPENGINE"):
        wait_for_kernels()


def pytest_configure(config):
    from ipyparallel.cluster import launcher

    if os.environ.get("IPCTL_PEER") == "1":
        os.environ.pop("IPCTL", None)
    else:
        os.environ["IPCTL"] = find_ipctl()
    if os.environ.get("IPENGINE"):
        os.environ["IPENGINE"] = str(Path(os.environ["IPENGINE"]).resolve(strict=True))
    site = str(HERE / "site")
    paths = [site, str(HERE)] + [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    launchers.replace(launcher)
    # As in the peer's own pyproject.toml, which is not installed.
    if hasattr(config.option, "asyncio_mode"):
        config.option.asyncio_mode = "auto"
    hide_slurm()


def hide_slurm():
    """The peer's Slurm tests need its CI's set-up (a shared /data); without it they are skipped, as without Slurm."""
    if Path("/data").is_dir():
        return
    which = shutil.which
    shutil.which = lambda command, *args, **kwargs: None if command == "sbatch" else which(command, *args, **kwargs)


def pytest_report_header(config):
    return f"controller: {os.environ.get('IPCTL', 'ipcontroller')}, engines: {' '.join(launchers.engine())}"
