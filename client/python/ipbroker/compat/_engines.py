"""Local engines beside those of other hosts, on a cluster of this process's own."""

from __future__ import annotations

import subprocess
import sys
import weakref
from typing import Any, List

from ..client import Client
from ..cluster import Cluster, _environment, program

START = 60.0
"""Seconds that they have to start."""


class LocalEngines:
    """Engines of this machine, each a process, with a tag of their own."""

    def __init__(self, cluster: Cluster, tag: str) -> None:
        self._cluster = cluster
        self.tag = tag
        self._processes: "List[subprocess.Popen[bytes]]" = []
        self.stop = weakref.finalize(self, _stop, cluster, self._processes)

    def __len__(self) -> int:
        return len(self._processes)

    def start(self, client: Client, count: int) -> None:
        """Starts so many more, and waits for them."""
        there = len(client.engines)
        command = [program("ipengine"), f"--python={sys.executable}", f"--profile-dir={self._cluster._dir}", "--cluster-id=", f"--tags={self.tag}", "--grace=5"]
        for _ in range(count):
            quiet: Any = subprocess.DEVNULL
            self._processes.append(subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, env=_environment(), start_new_session=True))
        client.wait_for_engines(there + count, START)


def _stop(cluster: Cluster, processes: "List[subprocess.Popen[bytes]]") -> None:
    # The second signal has them leave at once: what they run is of no use to anybody.
    for process in processes * 2:
        process.terminate()
    cluster.close()
    for process in processes:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
