"""A cluster for all tests that do not break theirs, and hosts with SSH servers."""

import os
import shutil
import signal
import subprocess

import pytest

import ipbroker

# What a shell starts in the background ignores SIGINT, and so does all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def cluster():
    with ipbroker.Cluster(n=2) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def client(cluster):
    with cluster.client() as client:
        yield client


@pytest.fixture
def executor(client):
    executor = client.executor()
    yield executor
    executor.shutdown(cancel_futures=True)


class Lab:
    """Two hosts, a and b, with SSH servers, that share no files with this one: see tests/hosts/lab. ``here`` begins a command
    that runs where their client is, ``on(host)`` one of the hosts' user, alice."""

    PROGRAM = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "hosts", "lab")

    def __init__(self, place):
        self.place = str(place / "state")
        # ssh finds its configuration by the user's home in /etc/passwd, not by $HOME.
        ours = f"{self.place}/home/.ssh"
        (place / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {ours}/config -o UserKnownHostsFile={ours}/known_hosts "$@"\n')
        (place / "ssh").chmod(0o755)
        self.here = [self.PROGRAM, "ctl", self.place, "env", f"PATH={place}:{os.environ['PATH']}"]

    def on(self, host):
        return [self.PROGRAM, "on", self.place, host]


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    if os.geteuid() != 0 or not all(map(shutil.which, ["ip", "unshare", "nsenter", "ssh-keygen"])) or not os.path.exists("/usr/sbin/sshd"):
        pytest.skip("hosts need root, iproute2, util-linux and openssh-server")
    lab = Lab(tmp_path_factory.mktemp("lab"))
    try:
        subprocess.run([lab.PROGRAM, "up", lab.place, "a", "b"], check=True, timeout=60)
        yield lab
    finally:
        subprocess.run([lab.PROGRAM, "down", lab.place], check=True, timeout=60)
