"""exec_proxy: the document's program on another host, and all operations that it lists."""

import pathlib
import re
import stat
import subprocess
import sys

import pytest

import documents
import ipbroker
import ipbroker.compat.exec_proxy as exec_proxy

DOCUMENT = documents.text("002")


def test_the_document(lab, tmp_path):
    cut = documents.between(DOCUMENT, "протоколу ssh.\n", "Скрипт должен")
    cut = cut[cut.index("import exec_proxy") :].replace("import exec_proxy", "import ipbroker.compat.exec_proxy as exec_proxy")
    cut = re.sub(r"^print (.*);$", r"print(\1)", cut.replace("user@remote_host", "alice@a"), flags=re.M)
    (tmp_path / "program.py").write_text(cut)
    subprocess.run([*lab.on("a"), "touch", "hers"], check=True)
    done = subprocess.run([*lab.here, sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert {".ssh", "hers"} <= set(eval(done.stdout))


@pytest.fixture(params=["ssh", "here"])
def ep(request, tmp_path, monkeypatch):
    """A connection: to the host of the laboratory, or to a shell of this one."""
    if request.param == "ssh":
        program = " ".join([*request.getfixturevalue("lab").here, "ssh -x"])
    else:
        fake = tmp_path / "ssh"
        fake.write_text('#!/bin/sh\necho "Welcome!"\nshift\ncd "$(dirname "$0")" && exec sh -c "$*"\n')
        fake.chmod(0o755)
        program = str(fake)
    monkeypatch.setattr(exec_proxy, "connection_program", program)
    with exec_proxy.Exec_proxy("alice@a") as ep:
        yield ep


def test_all_operations(ep, tmp_path):
    listed = re.findall(r"^(\w+)\(\)", documents.between(DOCUMENT, "обрабатываюn ошибки, например:\n", "Следующий простой пример"), re.M)
    assert len(listed) == 22 and all(callable(getattr(ep, name)) for name in listed)
    home, place = ep.getcwd(), ep.newdir()
    ep.chdir(place)
    assert ep.getcwd() == place != home
    ep.mkdir("sub")
    assert ep.isdir("sub") and not ep.isfile("sub") and ep.exists("sub") and not ep.exists("nothing")
    ep.rmdir("sub")
    assert ep.listdir() == ep.listdir("./") == []
    ep.write("file", "été\n")
    assert ep.read("file") == "été\n" and ep.isfile("file") and ep.stat("file").st_size == 6
    ep.write("bytes", b"\xff\0")
    assert ep.read("bytes") == "\udcff\0"
    ep.chmod("file", 0o640)
    assert stat.S_IMODE(ep.stat("file")[stat.ST_MODE]) == 0o640
    ep.mkfifo("fifo")
    assert stat.S_ISFIFO(ep.stat("fifo").st_mode)
    ep.symlink("file", "link")
    assert ep.read("link") == "été\n" and ep.run("readlink link") == "file\n"
    # More than one piece, and what is no text.
    data = bytes(range(256)) * (exec_proxy.CHUNK // 256) + b"and more"
    local, back = tmp_path / "local", tmp_path / "back"
    local.write_bytes(data)
    local.chmod(0o750)
    ep.upload(local, pathlib.PurePosixPath("there"))
    ep.upload(str(local), pathlib.PurePosixPath("."))
    assert ep.isfile(pathlib.PurePosixPath(place, "local"))
    ep.download(pathlib.PurePosixPath("there"), back)
    assert back.read_bytes() == data and stat.S_IMODE(back.stat().st_mode) == 0o750
    assert ep.run("cmp there local && ls -l local | cut -c1-10 && pwd") == f"-rwxr-x---\n{place}\n"
    for name in sorted(ep.listdir()):
        ep.unlink(name)
    assert ep.listdir() == []
    ep.chdir(home)
    ep.rmdir(place)
    assert not ep.exists(place)
    assert ep.is_ok() == 1 and ep.get_error() is None


def test_errors_are_kept(ep, tmp_path):
    assert ep.listdir("/nowhere") is None and ep.is_ok() == 0
    error = ep.get_error()
    assert isinstance(error, FileNotFoundError) and error.filename == "/nowhere"
    # The first one is kept; the connection goes on.
    ep.mkdir("/")
    assert ep.get_error() is error and ep.isdir("/")
    ep.reset_error()
    assert ep.is_ok() == 1 and ep.get_error() is None
    for wrong, kind, words in [
        (lambda: ep.upload(str(tmp_path / "nothing"), "x"), FileNotFoundError, "nothing"),
        (lambda: ep.download("/nowhere", str(tmp_path / "new")), FileNotFoundError, "nowhere"),
        (lambda: ep.read("/"), IsADirectoryError, "'/'"),
        (lambda: ep.stat("nul\0"), ipbroker.RemoteError, "ValueError: .*null"),
        (lambda: ep.run("echo some; echo more >&2; exit 3"), ipbroker.RemoteError, "'echo some; .*' ended with 3: more"),
    ]:
        wrong()
        assert isinstance(ep.get_error(), kind) and re.search(words, str(ep.get_error()))
        ep.reset_error()
    assert not (tmp_path / "new").exists()
    assert ep.run("echo some; exit 3") == "some\n"
    ep.reset_error()


def test_a_lost_connection(ep):
    ep.run("kill -KILL $PPID")
    assert isinstance(ep.get_error(), ipbroker.ConnectionError) and ep.host in str(ep.get_error())
    assert ep.getcwd() is None and ep.exists("/") is None


def test_no_connection(lab, monkeypatch):
    monkeypatch.setattr(exec_proxy, "connection_program", " ".join([*lab.here, "ssh -x"]))
    with pytest.raises(ipbroker.ConnectionError, match="nobody@nowhere: .*resolve hostname nowhere"):
        exec_proxy.Exec_proxy("nobody@nowhere")
    with pytest.raises(ValueError, match="'-oProxyCommand=x' is no host"):
        exec_proxy.Exec_proxy("-oProxyCommand=x")
    monkeypatch.setattr(exec_proxy, "connection_program", "no-such-program")
    with pytest.raises(ipbroker.ConnectionError, match="cannot start no-such-program"):
        exec_proxy.Exec_proxy("a")
