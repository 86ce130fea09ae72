"""DistributedPython, of the same document as dispy: a list of commands on hosts over SSH, an output file each."""

import json
import re
import subprocess

import documents
from ipbroker.cluster import program


def test_a_list_of_commands_over_ssh(lab, tmp_path):
    (command,) = re.findall(r"в списке будет '(\w+)'", documents.text("002"))
    commands = [command, "hostname", "hostname", "exit 3"]
    lines = [json.dumps({"cmd": f"({line}) > output", "get": {"output": f"output{n}.dat"}}) for n, line in enumerate(commands)]
    run = [*lab.here, program("ipclient"), "run", "--hosts", "a:2,b:2"]
    done = subprocess.run(run, cwd=tmp_path, input="\n".join(lines), capture_output=True, text=True, timeout=110)
    assert done.returncode == 1, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(job["result"]["code"] for job in results) == [0, 0, 0, 3]
    hosts = {job["get"]["output"]: job["result"]["host"] for job in results}
    assert set(hosts.values()) <= {"a", "b"}
    assert re.match(r"\w{3} \w{3} ", (tmp_path / "output0.dat").read_text())
    assert all((tmp_path / name).read_text() == f"{hosts[name]}\n" for name in ["output1.dat", "output2.dat"])
