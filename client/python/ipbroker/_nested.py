"""Inside a call: while it waits for what it has submitted, its engine works on other tasks, so that nesting never deadlocks.

They are of a higher priority than the call, as everything is that it submits: what an engine works on is then ever deeper, and no two
calls can wait for each other below others (scheduler/core/engines.rs, engine_waits)."""

from __future__ import annotations

import sys
import threading
import time
import weakref
from typing import Any, Callable, List, Optional

SLICE = 0.02
"""Seconds that the loop of coroutines, and then other calls, have their turn while a coroutine of a call waits."""


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


def in_call() -> bool:
    """Whether a call runs in this process."""
    return getattr(sys.modules.get("_ipbroker_worker"), "call", None) is not None


class Event(threading.Event):
    """What :func:`wait` waits for, for those who wait for something else than one future."""

    def __init__(self) -> None:
        super().__init__()
        self._callbacks: List[Callable[[Any], Any]] = []
        self.futures: List[Any] = []
        # How else that is stopped which is waited for.
        self.stop: Optional[Callable[[], Any]] = None

    def done(self) -> bool:
        return self.is_set()

    def add_done_callback(self, callback: Callable[[Any], Any]) -> None:
        self._callbacks.append(callback)
        if self.is_set():
            callback(self)

    def set(self) -> None:
        super().set()
        for callback in list(self._callbacks):
            callback(self)

    def wait(self, timeout: Optional[float] = None) -> bool:
        timeout = wait(self, timeout)
        self._callbacks.clear()
        # Where a call may not work on others: nested too deep, or in another thread.
        return super().wait(timeout)

    def cancel(self) -> None:
        for future in self.futures:
            future.cancel()
        if self.stop is not None:
            self.stop()


class Condition(threading.Condition):
    """A condition that calls wait for as :func:`wait` does; ``stop`` ends what they wait for, when they are stopped."""

    def __init__(self, stop: Optional[Callable[[], Any]] = None) -> None:
        super().__init__()
        # Whose method it is may go.
        self._stop = None if stop is None else weakref.WeakMethod(stop)
        self._events: List[Event] = []

    def wait(self, timeout: Optional[float] = None) -> bool:
        if not in_call():
            return super().wait(timeout)
        event = Event()
        event.stop = self._stop and self._stop()
        self._events.append(event)
        self.release()
        try:
            return event.wait(timeout)
        finally:
            self.acquire()
            self._events.remove(event)

    def notify(self, n: int = 1) -> None:
        super().notify(n)
        for event in self._events:
            event.set()


class Waiters(List[Any]):
    """Those of a future that a call has made. ``concurrent.futures.wait`` and ``as_completed`` add themselves: their events
    become ours."""

    def __init__(self, future: Any) -> None:
        super().__init__()
        self._future = future

    def append(self, waiter: Any) -> None:
        if not isinstance(waiter.event, Event):
            waiter.event = Event()
        waiter.event.futures.append(self._future)
        super().append(waiter)


async def coroutine(future: Any, awaited: Any) -> Any:
    """Waits for a future, of asyncio and of ours, in a coroutine of a call."""
    import asyncio

    loop = asyncio.get_running_loop()
    try:
        while not (await asyncio.wait([awaited], timeout=SLICE))[0]:
            # Those that are worked on may have a loop of their own.
            asyncio._set_running_loop(None)
            try:
                wait(future, SLICE)
            finally:
                asyncio._set_running_loop(loop)
    except asyncio.CancelledError:
        awaited.cancel()
        raise
    return awaited.result()
