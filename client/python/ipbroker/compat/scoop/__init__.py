"""SCOOP on ipbroker: ``from ipbroker.compat import scoop`` in place of ``import scoop``, and ``from ipbroker.compat.scoop import
futures, shared`` in place of ``from scoop import futures, shared``. Programs are started with

    python -m ipbroker.compat.scoop --host a b c -n 16 --tunnel program.py
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from typing import Any

from ... import __version__ as _ours

__version__ = "0.7"
__revision__ = f"ipbroker-{_ours}"

_ON_ENGINE = "_ipbroker_worker" in sys.modules

IS_RUNNING = _ON_ENGINE
"""Whether the program was started by the launcher."""
IS_ORIGIN = False
"""Whether this is the program itself, and not a task of it."""
WORKER = worker = f"{socket.gethostname() if _ON_ENGINE else '127.0.0.1'}:{os.getpid()}"
"""A name of this process."""
logger = logging.getLogger("scoop")
"""Writes to the standard error, also that of tasks."""

from . import futures, shared  # noqa: E402


def __getattr__(name: str) -> Any:
    if name == "SIZE":
        # The launcher sets it in the origin.
        size = globals()["SIZE"] = futures._size()
        return size
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _log(level: int, known: bool) -> None:
    """Lines as SCOOP writes them; `known`: with the name of this worker, as soon as it has one."""
    handler = logging.StreamHandler()
    name = f"({WORKER}) " if known else ""
    handler.setFormatter(logging.Formatter(f"[%(asctime)-15s] %(module)-9s {name}%(levelname)-7s %(message)s"))
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False


if _ON_ENGINE:
    _log(logging.INFO, True)
