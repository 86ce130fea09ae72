"""Bakapara: the article's session and command lines, and what it leaves open."""

import contextlib
import io
import os
import pprint
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

import documents
import ipbroker
from ipbroker.cluster import program
from ipbroker.compat.bakapara import Bakapara

ARTICLE = documents.text("000")
COMMAND = f"{sys.executable} -m ipbroker.compat.bakapara"


@pytest.fixture(scope="module")
def mezcal(tmp_path_factory):
    """The article's cluster: 48 engines, in the profile mezcal."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))
        with ipbroker.Cluster(n=0, profile="mezcal") as cluster:
            engines = subprocess.Popen([program("ipengine"), "--profile=mezcal", "-n", "48"], stderr=subprocess.DEVNULL)
            try:
                with cluster.client() as client:
                    client.wait_for_engines(48, 60)
                yield
            finally:
                engines.terminate()
                engines.wait(30)


class CtrlC(io.StringIO):
    """A terminal whose user presses Ctrl-C at the first job that has ended."""

    def write(self, text):
        super().write(text)
        if re.match(r"[1-9]\d*/", text):
            raise KeyboardInterrupt
        return len(text)


def test_the_session(mezcal):
    cut = documents.between(ARTICLE, "Pythonインタラクティブシェル上での利用", "コマンドラインからの利用")
    names = {}
    pieces = documents.session(cut.replace("from bakapara", "from ipbroker.compat.bakapara"))
    assert len(pieces) == 8
    for typed, shown in pieces:
        interrupted = shown.startswith("48/100")
        out = CtrlC() if interrupted else io.StringIO()
        value = None
        with contextlib.redirect_stdout(out), contextlib.suppress(KeyboardInterrupt) if interrupted else contextlib.nullcontext():
            value = documents.run(typed, names)
        # What a terminal shows in the end.
        printed = "".join(re.findall("[^\r]+", out.getvalue())[-1:])
        if value is not None:
            printed += pprint.pformat(value)
        pattern = documents.like(shown)
        if interrupted:
            pattern = re.compile(pattern.pattern.replace("48/", r"\d+/"))
        assert pattern.fullmatch(printed.strip()), f"{typed}\n{printed}\n{pattern.pattern}"
    assert len(names["bp"]) == 48 and names["bp"].ready() and names["bp"].successful()
    assert all(job["result"]["code"] == 0 for job in names["jobs"])
    names["bp"].client.close()


def test_the_command_line(mezcal, tmp_path):
    cut = documents.between(ARTICLE, "コマンドラインからの利用", "ジョブの中断について")
    (tmp_path / "sleep.task.json").write_text("".join(re.findall(r'^\{"cmd": "sleep 10"\}\n', cut, re.M)))
    (line,) = re.findall(r"^\$ (python bakapara.py .*)$", cut, re.M)
    done = subprocess.run(line.replace("python bakapara.py", COMMAND), shell=True, cwd=tmp_path, stderr=subprocess.PIPE, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    # The five jobs that the article prints, of its hundred.
    log = re.findall(r"^\d{4}-.*$", cut, re.M)
    expected = [log[0].replace("total 100", "total 5"), *[log[1].replace("[1/100]", f"[{at}/5]") for at in range(1, 6)], log[-1]]
    lines = done.stderr.splitlines()
    assert len(lines) == len(expected)
    for said, shown in zip(lines, expected):
        assert documents.like(shown).fullmatch(said), f"{said}\n{shown}"
    (keys,) = {tuple(sorted(documents.run(line.replace("null", "None"), {})["result"])) for line in re.findall(r'^\{"cmd".*"result".*$', cut, re.M)}
    results = [documents.run(line.replace("null", "None"), {}) for line in (tmp_path / "sleep.result.json").read_text().splitlines()]
    assert [tuple(sorted(job["result"])) for job in results] == [keys] * 5


def test_a_profile_of_another_directory(mezcal, monkeypatch, tmp_path):
    place = os.environ["IPYTHONDIR"]
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    bp = Bakapara(profile="mezcal", ipython_dir=place)
    assert len(bp) == 48
    bp.client.close()


def test_ctrl_c_stops_the_jobs(mezcal, tmp_path):
    started = tmp_path / "started"
    line = f'{{"cmd": "echo $$ > {started}.new; mv {started}.new {started}; sleep 600"}}\n'
    command = subprocess.Popen([*COMMAND.split(), "-p", "mezcal"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    command.stdin.write(line)
    command.stdin.close()
    wait_until(started.exists)
    command.send_signal(signal.SIGINT)
    assert command.wait(60) == 130 and "Traceback" not in command.stderr.read()
    command.stderr.close()
    wait_until(lambda: not os.path.exists(f"/proc/{started.read_text().strip()}"))


@pytest.fixture
def bp(client):
    bp = Bakapara(client.connection_file)
    yield bp
    bp.abort()
    bp.client.close()


@pytest.mark.parametrize("how", ["abort", "interrupt"])
def test_running_jobs_are_stopped(bp, how, tmp_path):
    started = tmp_path / "started"
    jobs = [{"cmd": f"touch {started}; sleep 600"} for _ in range(6)]
    assert bp.run(jobs) is True
    assert bp.run([{"cmd": "true"}]) is False
    wait_until(started.exists)
    assert not bp.ready()
    with pytest.raises(AssertionError):
        bp.successful()
    getattr(bp, how)()
    bp.wait(60)
    assert bp.ready() and not bp.successful()
    assert {job["result"]["status"] for job in jobs} == {"aborted"}
    assert bp.run([{"cmd": "true"}]) is True


def test_jobs_of_a_generator(bp):
    jobs = [{"cmd": "true"}, {"cmd": "exit 3"}]
    assert bp.run(job for job in jobs)
    bp.wait(None)
    assert [job["result"]["code"] for job in jobs] == [0, 3]


def test_keys_of_jobs(bp, tmp_path):
    jobs = [
        {"cmd": "echo 1 | tee /dev/stderr; pwd", "cd": str(tmp_path), "out": "o", "err": "e"},
        {"cmd": "false | hoge | true"},
        {"cmd": "true", "cd": str(tmp_path / "nowhere")},
        {"cmd": "pwd", "out": str(tmp_path / "pwd"), "host": ["nowhere", socket.getfqdn()]},
    ]
    assert bp.run(jobs)
    bp.wait(None)
    assert [job["result"]["code"] for job in jobs] == [0, 127, None, 0]
    assert [job["result"]["status"] for job in jobs] == ["ok", "ok", "error", "ok"]
    assert "nowhere" in jobs[2]["result"]["error"] and "error" not in jobs[0]["result"]
    assert (tmp_path / "o").read_text() == f"1\n{tmp_path}\n" and (tmp_path / "e").read_text() == "1\n"
    assert (tmp_path / "pwd").read_text() == f"{os.getcwd()}\n"
    assert not bp.successful()


def test_results_are_written_when_they_are_asked_for(bp):
    bp.status()
    bp.wait()
    assert not bp.ready()
    jobs = [{"cmd": "true", "result": "old"}]
    bp.run(jobs)
    wait_until(bp.ready)
    assert jobs[0]["result"] == "old"
    out = io.StringIO()
    bp.status(fo=out)
    assert jobs[0]["result"]["code"] == 0 and out.getvalue().splitlines()[-1].startswith("1 tasks completed in ")
    assert bp.run([])
    assert bp.ready() and bp.successful()
    with pytest.raises(ipbroker.JobError, match="jobs:2: a job is a dict"):
        bp.run([{"cmd": "true"}, "true"])


def test_status_gives_up(bp):
    out = io.StringIO()
    bp.run([{"cmd": "sleep 600"}])
    bp.status(interval=0.01, timeout=0.05, fo=out)
    assert re.fullmatch(r"(0/1 tasks finished after 0:00:00\.\d+\r)+0/1 tasks finished after \S+\n", out.getvalue())


def test_files_of_the_command_line(cluster, tmp_path):
    command = f"{COMMAND} -p nobody -i jobs -o results -l log"
    (tmp_path / "jobs").write_text('{"cmd": "exit 3", "n": 1}\n\n{"cmd": true\n')

    def run(**environment):
        return subprocess.run(command, shell=True, cwd=tmp_path, env=dict(os.environ, **environment), capture_output=True, text=True, timeout=100)

    done = run()
    assert done.returncode == 1 and re.fullmatch("bakapara: jobs, line 3: this is no JSON: .*; nothing was submitted\n", done.stderr)
    (tmp_path / "jobs").write_text('{"cmd": "exit 3", "n": 1}\n{"cmd": "true", "cd": "/nowhere"}\n')
    done = run(IPYTHONDIR=str(tmp_path))
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and "nobody" in done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTHONDIR", str(tmp_path))
        with ipbroker.Cluster(n=1, profile="nobody"):
            done = run()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "results").read_text().count('"n": 1') == 1
    log = (tmp_path / "log").read_text()
    assert "returned 3 in 0:00:0" in log and re.search(r"\[\d/2\] failed \(FileNotFoundError: .*nowhere.*\): true\n", log)


def wait_until(there, seconds=60):
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)
