"""Job lines as dicts."""

import time

import numpy
import pytest

import ipbroker


def test_jobs_return_at_once_and_end(client, tmp_path):
    begin = time.monotonic()
    jobs = client.run([{"cmd": "sleep 0.3; echo $((6*7))", "number": at} for at in range(4)], capture=1000, cwd=tmp_path)
    assert time.monotonic() - begin < 5 and len(jobs) == 4
    seen = [job["number"] for job in jobs.as_completed(60)]
    assert sorted(seen) == [0, 1, 2, 3]
    assert jobs.wait(1) and jobs.failed == []
    assert jobs[0]["result"]["stdout"] == "42\n" and jobs[0]["result"]["code"] == 0
    assert "4 of 4" in jobs._repr_html_() and "4 of 4" in repr(jobs)


def test_codes_graphs_and_directories(client, tmp_path):
    (tmp_path / "sub").mkdir()
    jobs = client.run(
        [
            {"cmd": "cat one", "after": ["first"], "cd": "sub", "capture": 10},
            {"cmd": "echo 1 > one", "id": "first", "cd": "sub"},
            {"cmd": "exit 7", "id": "bad"},
            {"cmd": "true", "after": ["bad"]},
        ],
        cwd=tmp_path,
    )
    assert jobs.wait(60)
    assert jobs[0]["result"]["stdout"] == "1\n"
    assert [job["cmd"] for job in jobs.failed] == ["exit 7", "true"] or {job["cmd"] for job in jobs.failed} == {"exit 7", "true"}
    assert jobs[2]["result"]["code"] == 7
    assert '"bad"' in jobs[3]["result"]["error"]


def test_bad_lines_are_refused_whole(client):
    for jobs, words in [
        ([{"cmd": "true"}, {"command": "x"}], 'jobs:2: .*"cmd"'),
        ([{"cmd": "true", "after": ["nobody"]}], '"nobody"'),
        ([{"cmd": "true", "retries": "many"}], "retries"),
        ([{"cmd": "true", "x": object()}], "jobs:1: .*JSON has no object"),
    ]:
        with pytest.raises(ipbroker.JobError, match=words):
            client.run(jobs)
    with pytest.raises(ipbroker.JobError, match="jobs:2: a job is a dict"):
        client.run(["true", 3])
    # One that is no list is not taken for a list of its letters, or of its keys.
    for job in ["ls", b"ls", {"cmd": "ls"}]:
        with pytest.raises(TypeError, match="jobs is a list"):
            client.run(job)
    with pytest.raises(TypeError, match="'capturing'"):
        client.run([{"cmd": "true"}], capturing=3)
    assert len(client.run([])) == 0 and client.run([]).wait(1)


def test_paths_and_numbers_of_numpy_are_taken(client, tmp_path):
    (job,) = jobs = client.run([{"cmd": "pwd", "cd": tmp_path, "cpus": numpy.int64(1), "timeout": numpy.float32(60)}], capture=True)
    assert jobs.wait(60) and job["result"]["stdout"] == f"{tmp_path}\n"


def test_jobs_have_alternatives(client):
    (job,) = jobs = client.run(["echo $IPBROKER_ALTERNATIVE"], any=[{"gpus": 64}, {"cpus": 1}], capture=True)
    assert jobs.wait(60) and job["result"]["stdout"] == "2\n"


def test_jobs_are_aborted(client):
    jobs = client.run([{"cmd": "sleep 600"}] * 6)
    jobs.abort()
    assert jobs.wait(60)
    assert {job["result"]["status"] for job in jobs} == {"aborted"} and len(jobs.failed) == 6


def test_progress_in_text(client, capfd):
    assert len(client.run([{"cmd": "true"}, {"cmd": "false"}]).progress()) == 2
    assert "2/2 jobs, 1 failed" in capfd.readouterr().err


def test_timeouts(client):
    jobs = client.run(["sleep 600"])
    assert not jobs.wait(0.2)
    with pytest.raises(TimeoutError, match="0 of 1 jobs"):
        list(jobs.as_completed(0.2))
    jobs.abort()
    assert jobs.wait(60)
