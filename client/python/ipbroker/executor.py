"""A :class:`concurrent.futures.Executor` on the cluster."""

from __future__ import annotations

import concurrent.futures
import os
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any, Callable, Iterable, List, Optional, Set

from .futures import Future
from .map import Flow, MapIterator

if TYPE_CHECKING:
    from .client import Client
    from .view import View

_executors: "weakref.WeakSet[Executor]" = weakref.WeakSet()


class Executor(concurrent.futures.Executor):
    """Runs calls on a cluster: whatever takes an executor takes this. ``client.executor(…)`` makes one."""

    def __init__(self, view: "View") -> None:
        self._view = view
        # What is submitted is either refused or seen by whoever shuts down. To pickle an argument may submit another call.
        self._lock = threading.RLock()
        self._futures: Set[Future] = set()
        self._flows: "weakref.WeakSet[Flow]" = weakref.WeakSet()
        self._left: List[Flow] = []
        self._shut = False
        # A future keeps its executor: what one has begun is waited for at exit, whoever still knows it.
        self.add, self.discard = self._futures.add, self._futures.discard
        _executors.add(self)

    @property
    def client(self) -> "Client":
        """The client that the calls go through."""
        return self._view.client

    @property
    def view(self) -> "View":
        """The view with this executor's options."""
        return self._view

    def _open(self) -> None:
        if self._shut:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """Calls a function once."""
        with self._lock:
            self._open()
            return self._view.client._link.submit(self._view, fn, args, kwargs, self)

    def map(self, fn: Callable[..., Any], *iterables: Iterable[Any], timeout: Optional[float] = None, chunksize: Optional[int] = None, buffersize: Optional[int] = None) -> MapIterator:
        """Calls a function for each item of the iterables, which are read as results are consumed; results in their order.

        ``buffersize`` (as of Python 3.14): so many calls at most are sent whose results are not consumed.
        """
        flow = Flow(self._view, fn, iterables, zip(*iterables), timeout, chunksize, buffersize=buffersize)
        flow.left = self._left
        with self._lock:
            self._open()
            # Whoever shuts down goes through them.
            self._flows.add(flow)
        # The arguments are read outside of the lock: that may take as long as it likes.
        return flow.begin()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """No more calls; waits for those there are, or cancels what has not ended."""
        with self._lock:
            self._shut = True
            # In a forked process: what the parent has submitted is the parent's.
            futures = [future for future in list(self._futures) if not future._link.forked]
            flows = [flow for flow in list(self._flows) if not flow.link.forked]
        if cancel_futures:
            for future in futures:
                future.cancel()
            for flow in flows:
                flow.cancel()
        if wait:
            for flow in flows:
                flow.drain()
            self._left.clear()
            concurrent.futures.wait(futures)

    def __exit__(self, kind: Any, *_: object) -> None:
        # Ctrl-C in a terminal reaches the workers of other executors, too, and what they run ends.
        self.shutdown(cancel_futures=kind is KeyboardInterrupt)

    def __repr__(self) -> str:
        return f"<ipbroker.Executor of {self._view.client!r}: {len(self._futures)} calls>"


def _at_exit() -> None:
    """Like the standard executors, ours end what they have begun, unless Ctrl-C has ended the program."""
    interrupted = getattr(sys, "last_type", None) is KeyboardInterrupt and not hasattr(sys, "ps1")
    for executor in list(_executors):
        if not executor.client.closed and not executor.client._links[0].forked:
            for flow in list(executor._flows):
                if flow.ends is None and not interrupted:
                    # It may hold up the end for ever.
                    flow.read_no_more()
            executor.shutdown(cancel_futures=interrupted)


def _after_fork() -> None:
    for executor in list(_executors):
        # Another thread of the parent may have held it.
        executor._lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)


try:
    # Before daemon threads are stopped, as concurrent.futures does it.
    threading._register_atexit(_at_exit)  # type: ignore[attr-defined]
except (AttributeError, RuntimeError):
    import atexit

    atexit.register(_at_exit)
