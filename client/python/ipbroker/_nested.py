"""Inside a call: while it waits for what it has submitted, its engine works on other tasks, so that nesting never deadlocks.

They are of a higher priority than the call, as everything is that it submits: what an engine works on is then ever deeper, and no two
calls can wait for each other below others (scheduler/core/engines.rs, engine_waits)."""

from __future__ import annotations

import sys
import time
from typing import Any, Callable, Optional


def priority(wanted: Optional[int] = None) -> Optional[int]:
    """The priority of what the running call submits, if one runs: a higher one than its own, whatever is wanted."""
    worker = sys.modules.get("_ipbroker_worker")
    call = getattr(worker, "call", None)
    if call is None:
        return wanted
    deeper: int = min(call.priority + 1, 1 << 30)
    return deeper if wanted is None else max(wanted, deeper)


def wait(future: Any, timeout: Optional[float]) -> Optional[float]:
    """Waits for a future where a call does; what is left of the timeout. Elsewhere it returns at once."""
    worker = sys.modules.get("_ipbroker_worker")
    if worker is None or future.done():
        return timeout
    begun = time.monotonic()
    try:
        worker.wait(future, timeout)
    except KeyboardInterrupt:
        # The call is stopped: nobody wants what it waits for.
        if hasattr(future, "cancel"):
            future.cancel()
        raise
    return None if timeout is None else max(0.0, timeout - (time.monotonic() - begun))


class Bell:
    """What :func:`wait` waits for, for those who wait for more than one future."""

    def __init__(self) -> None:
        self._rung = False
        self._callbacks: list[Callable[[Any], Any]] = []

    def done(self) -> bool:
        return self._rung

    def add_done_callback(self, callback: Callable[[Any], Any]) -> None:
        self._callbacks.append(callback)
        if self._rung:
            callback(self)

    def ring(self) -> None:
        self._rung = True
        for callback in self._callbacks:
            callback(self)


def in_call() -> bool:
    """Whether a call runs in this process."""
    return getattr(sys.modules.get("_ipbroker_worker"), "call", None) is not None
