"""The wheel on every CPython that is found, from 3.9 on; and engines of another Python than the client's."""

import glob
import math
import os
import shutil
import subprocess
import sys

import cloudpickle
import pytest

import calls
import ipbroker
from ipbroker.cluster import program

HERE = os.path.dirname(__file__)
ABOUT = "import sys, sysconfig as s; print(sys.implementation.name == 'cpython' and not s.get_config_var('Py_GIL_DISABLED'), *sys.version_info[:2])"


def others():
    """Interpreters that can take the package, by version: those of pyenv and on the PATH, but for this one's version."""
    places = glob.glob(os.path.expanduser("~/.pyenv/versions/3.*/bin")) + os.environ["PATH"].split(os.pathsep)
    found = {}
    for path in (path for place in places for path in glob.glob(f"{place}/python3.[0-9]*") if path.rpartition(".")[2].isdigit()):
        told = subprocess.run([path, "-c", ABOUT], capture_output=True, text=True).stdout.split()
        version = tuple(map(int, told[1:]))
        if told[:1] == ["True"] and (3, 9) <= version != sys.version_info[:2]:
            found.setdefault(version, path)
    return {"{}.{}".format(*version): path for version, path in sorted(found.items())}


OTHERS = others()


@pytest.mark.parametrize("version", OTHERS)
def test_the_wheel_on(version, tmp_path):
    wheel = os.environ.get("IPBROKER_WHEEL")
    if wheel is None:
        pytest.skip("IPBROKER_WHEEL names no wheel: tests/python/run does")
    python = f"{tmp_path}/bin/python"
    subprocess.run([OTHERS[version], "-m", "venv", "--without-pip", tmp_path], check=True)
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "install", "--no-deps", "--no-compile", "--no-index", wheel], check=True)
    # What it depends on is pure Python, and here already.
    shutil.copytree(os.path.dirname(cloudpickle.__file__), f"{tmp_path}/lib/python{version}/site-packages/cloudpickle")
    done = subprocess.run([python, "-W", "error", f"{HERE}/whole.py"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and done.stdout == "all is well\n", done.stderr


@pytest.mark.parametrize("version", dict.fromkeys([*OTHERS][:1] + [*OTHERS][-1:]))
def test_engines_of(version):
    with ipbroker.Cluster(n=1, python=OTHERS[version]) as cluster:
        client = cluster.client()
        assert client.submit(math.sqrt, 16).result(60) == 4
        with pytest.raises(calls.Custom) as caught:
            client.submit(calls.fail, "custom").result(60)
        assert caught.value.code == 7
        assert list(client.view().map(math.sqrt, [16] * 3000)) == [4] * 3000
        ours = "{}.{}".format(*sys.version_info[:2])
        for call in [
            lambda: client.submit(lambda: 1),
            lambda: client.submit(sorted, [1, 2], key=lambda x: -x),
            lambda: client.view().map(lambda x: 1, [1]),
            lambda: client.view().map(callable, [1, lambda: 1]),
        ]:
            with pytest.raises(ipbroker.PicklingError) as caught:
                call()
            text = str(caught.value)
            assert f"is for Python {ours} only, and the engines run {version};" in text and "\n" not in text
        # Where there are both, those that can take the call.
        arguments = [program("ipengine"), f"--python={sys.executable}", f"--profile-dir={cluster._dir}", "--cluster-id="]
        with subprocess.Popen(arguments, stderr=subprocess.DEVNULL) as engine:
            client.wait_for_engines(2, 60)
            assert [client.submit(sorted, [1, 2], key=lambda x: -x).result(60) for _ in range(4)] == [[2, 1]] * 4
            engine.terminate()
