"""Launchers for ``ipyparallel``: ``ipp.Cluster(controller="ipbroker", engines="ipbroker")``, found by their entry points."""

from __future__ import annotations

import sys
from typing import Any, List

from ipyparallel.cluster import launcher
from traitlets import default

from .cluster import program


class ControllerLauncher(launcher.LocalControllerLauncher):  # type: ignore[misc]
    """Starts ``ipctl`` where ``ipyparallel`` would start its own controller."""

    @default("controller_cmd")
    def _controller_cmd(self) -> List[str]:
        return [program("ipctl")]


class EngineSetLauncher(launcher.LocalEngineLauncher):  # type: ignore[misc]
    """Starts ``ipengine --kernel=ipyparallel``: one process for all engines of the set, and below it an interpreter for each,
    with ``ipyparallel``'s own kernel. They also run this package's calls, and commands."""

    @default("engine_cmd")
    def _engine_cmd(self) -> List[str]:
        return [program("ipengine"), "--kernel=ipyparallel", f"--python={sys.executable}"]

    def find_args(self) -> List[str]:
        return [*super().find_args(), f"--engines={self.n}"]

    def start(self, n: int) -> Any:
        self.n = n
        return super().start()


class CallsEngineSetLauncher(EngineSetLauncher):
    """Starts ``ipengine --python``: engines for this package's calls and for commands alone."""

    @default("engine_cmd")
    def _engine_cmd(self) -> List[str]:
        return [program("ipengine"), f"--python={sys.executable}"]
