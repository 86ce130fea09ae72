"""Launchers for ``ipyparallel``: ``ipp.Cluster(controller="ipbroker")``, found by their entry points."""

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


class EngineLauncher(launcher.LocalEngineLauncher):  # type: ignore[misc]
    """One engine of :class:`EngineSetLauncher`."""


class EngineSetLauncher(launcher.LocalEngineSetLauncher):  # type: ignore[misc]
    """Starts ``ipengine --python``: engines for this package's calls and for commands, on ``ipyparallel``'s cluster."""

    launcher_class: Any = EngineLauncher

    @default("engine_cmd")
    def _engine_cmd(self) -> List[str]:
        return [program("ipengine"), f"--python={sys.executable}"]
