"""SCOOP's futures: those of ipbroker, under its names. All of this may be used within tasks, at any depth."""

from __future__ import annotations

import builtins
import concurrent.futures
import functools
import itertools
import os
import threading
import time
import uuid
import warnings
from collections import deque
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION, CancelledError
from concurrent.futures import TimeoutError
from typing import Any, Callable, Deque, Dict, Iterable, Iterator, List, NamedTuple, Optional, Set, Tuple, Union

from ... import _nested
from ...client import current_client
from ...errors import IpbrokerError
from ...futures import Future
from ...view import View

__all__ = [
    "ALL_COMPLETED",
    "FIRST_COMPLETED",
    "FIRST_EXCEPTION",
    "CancelledError",
    "NotStartedProperly",
    "TimeoutError",
    "as_completed",
    "map",
    "mapReduce",
    "mapScan",
    "map_as_completed",
    "shutdown",
    "submit",
    "wait",
]

class NotStartedProperly(Exception):
    """The program was not started by ``python -m ipbroker.compat.scoop``."""


_view: Union[None, View, "_Task"] = None
"""Where calls go. The launcher sets it in the origin; a task finds it."""


def _calls() -> Union[View, "_Task"]:
    global _view
    if _view is None:
        if not _nested.in_call():
            raise NotStartedProperly("SCOOP was not started properly: start the program with `python -m ipbroker.compat.scoop program.py`")
        try:
            _view = _Task(current_client().view())
        except IpbrokerError:
            # From this host the controller cannot be reached: a task's own tasks run right there.
            _view = _Task(None)
    return _view


def _size() -> int:
    """How many workers there are."""
    view = _calls()
    if isinstance(view, _Task):
        return view.size()
    return len(view.client.engines)


def map(func: Callable[..., Any], *iterables: Iterable[Any], timeout: Optional[float] = None, **kwargs: Any) -> Iterator[Any]:
    """Calls a function for each item of the iterables, on the workers; results in their order.

    ``timeout`` (s) is for all results; other keywords are given to each call.
    """
    try:
        view = _calls()
    except NotStartedProperly as error:
        warnings.warn(f"{error}. Your map call has been replaced by Python's own map().", RuntimeWarning, stacklevel=2)
        return builtins.map(_with(func, kwargs), *iterables)
    return view.map(_with(func, kwargs), *iterables, timeout=timeout)


def map_as_completed(func: Callable[..., Any], *iterables: Iterable[Any], timeout: Optional[float] = None, **kwargs: Any) -> Iterator[Any]:
    """Like :func:`map`, with the results as they come."""
    return _calls().map_unordered(_with(func, kwargs), *iterables, timeout=timeout)


def submit(func: Callable[..., Any], *args: Any, **kwargs: Any) -> "concurrent.futures.Future[Any]":
    """Calls a function once, on a worker; a future."""
    return _calls().submit(func, *args, **kwargs)


def mapReduce(mapFunc: Callable[..., Any], reductionFunc: Callable[[Any, Any], Any], *iterables: Iterable[Any], timeout: Optional[float] = None, **kwargs: Any) -> Any:
    """Calls `mapFunc` as :func:`map` does, and makes one value of the results: ``reductionFunc(a, b)`` for neighbours.

    The workers reduce what they have mapped; the rest is done here.
    """
    chunks = _chunks(iterables)
    return functools.reduce(reductionFunc, _calls().map(_reducer(_with(mapFunc, kwargs), reductionFunc), chunks, timeout=timeout))


def mapScan(mapFunc: Callable[..., Any], reductionFunc: Callable[[Any, Any], Any], *iterables: Iterable[Any], timeout: Optional[float] = None, **kwargs: Any) -> List[Any]:
    """Like :func:`mapReduce`, with all intermediate values: those of :func:`itertools.accumulate`."""
    values: List[Any] = []
    for part in _calls().map(_scanner(_with(mapFunc, kwargs), reductionFunc), _chunks(iterables), timeout=timeout):
        if values:
            last = values[-1]
            part = [reductionFunc(last, value) for value in part]
        values.extend(part)
    return values


class DoneAndNotDoneFutures(NamedTuple):
    """What :func:`wait` gives."""

    done: Set[Any]
    not_done: Set[Any]


def wait(fs: Iterable[Any], timeout: float = -1, return_when: str = ALL_COMPLETED) -> DoneAndNotDoneFutures:
    """Waits for futures: for all, the first, or the first that fails; at most ``timeout`` seconds, if that is not negative."""
    if return_when not in (ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION):
        raise ValueError(f"return_when is ALL_COMPLETED, FIRST_COMPLETED or FIRST_EXCEPTION, not {return_when!r}")
    futures = set(fs)
    try:
        for future in as_completed(futures, None if timeout is None or timeout < 0 else timeout):
            if return_when == FIRST_COMPLETED or (return_when == FIRST_EXCEPTION and not future.cancelled() and future.exception() is not None):
                break
    except TimeoutError:
        pass
    done = {future for future in futures if future.done()}
    return DoneAndNotDoneFutures(done, futures - done)


def as_completed(fs: Iterable[Any], timeout: Optional[float] = None) -> Iterator[Any]:
    """The futures, as they end."""
    futures = list(dict.fromkeys(fs))
    ended = _Ended(futures)
    deadline = None if timeout is None else time.monotonic() + timeout
    for count in range(len(futures)):
        future = ended.next(deadline)
        if future is None:
            raise TimeoutError(f"{count} of {len(futures)} futures have ended after {timeout} s")
        yield future


def shutdown(wait: bool = True) -> None:
    """Does nothing: the launcher stops the workers."""


class _Ended:
    """Futures in the order in which they end."""

    def __init__(self, futures: Iterable[Any]) -> None:
        self._changed = threading.Condition()
        self._ready: Deque[Any] = deque()
        for future in futures:
            future.add_done_callback(self._add)

    def _add(self, future: Any) -> None:
        with self._changed:
            self._ready.append(future)
            self._changed.notify_all()

    def next(self, deadline: Optional[float]) -> Any:
        """The next one; None after the deadline."""
        while not self._ready:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return None
            try:
                if not _help():
                    with self._changed:
                        self._changed.wait_for(lambda: self._ready, left)
            except KeyboardInterrupt:
                _stop()
                raise
        return self._ready.popleft()


# Within a task. What it waits for it does itself as long as nobody has begun it, newest first; what others have begun it
# waits for. As each worker is busy with one task and what that has submitted, no two ever wait for each other. Children that
# nobody has begun after PAUSE are offered to other workers, the oldest first, which are the largest where tasks are trees. Who
# creates a child's file has begun it: workers that can reach the controller share its directory.


class _Child(concurrent.futures.Future):  # type: ignore[type-arg]
    """What a task has submitted."""

    def __init__(self, view: Optional[View], function: Callable[..., Any], args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> None:
        super().__init__()
        self._work: Optional[Tuple[Any, ...]] = (function, args, kwargs)
        self._view = view
        self._file = ""
        self._remote: Optional[Future] = None
        if view is None:
            self._run(function, args, kwargs)
            return
        with _lock:
            _open[self] = _waiting[self] = None
        _offerer()

    def _send(self, function: Callable[..., Any], args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> None:
        """Offers it to all workers."""
        assert self._view is not None
        self._remote = self._view.submit(_same(_beginner, function), self._file, *args, **kwargs)
        self._remote.add_done_callback(self._ended)

    def _ended(self, remote: Any) -> None:
        if remote.cancelled():
            if super().cancel():
                self.set_running_or_notify_cancel()
        elif remote.exception() is not None:
            self._settle(self.set_exception, remote.exception())
        elif remote.result() is not None:
            self._settle(self.set_result, *remote.result())
        elif not os.path.exists(self._file):
            return  # a worker that does not share the directory: it is still to be done
        _forget(self)
        # Nobody will look for it any more.
        _unlink(self._file)

    def _settle(self, how: Callable[[Any], None], what: Any) -> None:
        self._work = None
        try:
            how(what)
        except concurrent.futures.InvalidStateError:
            pass  # cancelled

    def _run(self, function: Callable[..., Any], args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> None:
        try:
            value = function(*args, **kwargs)
        except Exception as error:
            self._settle(self.set_exception, error)
        else:
            self._settle(self.set_result, value)

    def _wait(self, timeout: Optional[float]) -> Optional[float]:
        """Works until it has ended, or there is nothing to do; what is left of the timeout."""
        begun = time.monotonic()
        while not self.done() and (timeout is None or time.monotonic() - begun < timeout) and _help(self):
            pass
        return None if timeout is None else max(0.0, timeout - (time.monotonic() - begun))

    def result(self, timeout: Optional[float] = None) -> Any:
        try:
            return super().result(self._wait(timeout))
        except KeyboardInterrupt:
            _stop()
            self.cancel()
            raise

    def exception(self, timeout: Optional[float] = None) -> Optional[BaseException]:
        return super().exception(self._wait(timeout))

    def cancel(self) -> bool:
        # Done again, it does what an interrupt has left undone.
        with _lock:
            _waiting.pop(self, None)
        if not self.done() and not _begin(self._file):
            if self._remote is not None:
                self._remote.cancel()
        elif super().cancel():
            self.set_running_or_notify_cancel()
        _forget(self)
        return self.cancelled()


OFFERED = 4
"""Children for each worker that are offered at a time."""
PAUSE = 0.002
"""Seconds: what is done sooner is not worth a message."""

_lock = threading.Lock()
# What tasks of this process have submitted and nobody is known to have begun, oldest first: all, those not offered yet, the others.
_open: Dict[_Child, None] = {}
_waiting: Dict[_Child, None] = {}
_offered: Set[_Child] = set()
_room = threading.Event()
_thread: Optional[threading.Thread] = None


def _forget(child: _Child) -> None:
    """It is begun."""
    with _lock:
        _drop(child)


def _drop(child: _Child) -> None:
    _open.pop(child, None)
    _waiting.pop(child, None)
    if child in _offered:
        _offered.discard(child)
        _room.set()


def _stop() -> None:
    """The task is stopped: nobody wants what it has submitted."""
    while _open:
        try:
            # The oldest last: those may run, and their workers would begin others.
            for child in reversed(list(_open)):
                child.cancel()
        except KeyboardInterrupt:
            pass  # the signal once more


def _offerer() -> None:
    """Something waits: there is a thread that offers it."""
    global _thread
    if _thread is None:
        _thread = threading.Thread(target=_offer_always, name="scoop-offers", daemon=True)
        _thread.start()
    _room.set()


def _offer_always() -> None:
    while True:
        _room.wait()
        time.sleep(PAUSE)
        _room.clear()
        _offer()


def _offer() -> None:
    """Offers children to other workers, if there is room."""
    while True:
        with _lock:
            child = next(iter(_waiting), None)
            if child is None or child._view is None or len(_offered) >= OFFERED * _workers(child._view):
                return
            del _waiting[child]
            work = child._work
            if work is None:
                continue
            _offered.add(child)
            child._file = os.path.join(os.path.dirname(child._view.client.connection_file), f"scoop-{_mark}-{next(_numbers)}")
        try:
            child._send(*work)
        except IpbrokerError:
            pass  # what cannot be sent is done here


def _workers(view: View) -> int:
    return max(1, view.client._link.native.engine_count())


def _help(first: Optional[_Child] = None) -> bool:
    """Does what nobody has begun: that one, else the newest; false if there is nothing."""
    while True:
        with _lock:
            if not _open:
                return False
            child = first if first is not None and first in _open else next(reversed(_open))
            _drop(child)
        if _begin(child._file):
            work = child._work
            if work is not None:
                child._run(*work)
                return True
            _unlink(child._file)  # it has just ended, and its file was gone


def _begin(file: str) -> bool:
    """Whether this process is the first to begin what has that file; what was never offered has none."""
    if not file:
        return True
    try:
        os.close(os.open(file, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _unlink(file: str) -> None:
    try:
        os.unlink(file)
    except OSError:
        pass


_mark = uuid.uuid4().hex
_numbers = itertools.count()


@functools.lru_cache(64)
def _kept(make: Callable[[Any], Any], function: Any) -> Any:
    return make(function)


def _same(make: Callable[[Any], Any], function: Any) -> Any:
    """What is made of a function: the same each time, so that it is pickled once."""
    try:
        return _kept(make, function)
    except TypeError:  # it has no hash
        return make(function)


class _Task:
    """The calls of a task, as a view has them. Without a view they are done at once."""

    def __init__(self, view: Optional[View]) -> None:
        self._view = view

    def size(self) -> int:
        """How many workers there are."""
        return 1 if self._view is None else _workers(self._view)

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> _Child:
        """Calls a function once."""
        return _Child(self._view, function, args, kwargs)

    def map(self, function: Callable[..., Any], *iterables: Iterable[Any], timeout: Optional[float] = None) -> Iterator[Any]:
        """Calls a function for each item."""
        if self._view is None:
            return builtins.map(function, *iterables)
        return self._results(self._parts(function, iterables), timeout)

    def map_unordered(self, function: Callable[..., Any], *iterables: Iterable[Any], timeout: Optional[float] = None) -> Iterator[Any]:
        """Calls a function for each item, results as they come."""
        if self._view is None:
            return builtins.map(function, *iterables)
        return itertools.chain.from_iterable(part.result() for part in as_completed(self._parts(function, iterables), timeout))

    def _parts(self, function: Callable[..., Any], iterables: Tuple[Iterable[Any], ...]) -> List[_Child]:
        """Many calls are submitted as some lists of calls."""
        calls = list(zip(*iterables))
        size = max(1, len(calls) // (8 * self.size()))
        many = _same(_lister, function)
        return [self.submit(many, calls[at : at + size]) for at in range(0, len(calls), size)]

    @staticmethod
    def _results(parts: List[_Child], timeout: Optional[float]) -> Iterator[Any]:
        deadline = None if timeout is None else time.monotonic() + timeout
        for part in parts:
            yield from part.result(None if deadline is None else max(0.0, deadline - time.monotonic()))


def _with(function: Callable[..., Any], kwargs: Dict[str, Any]) -> Callable[..., Any]:
    return functools.partial(function, **kwargs) if kwargs else function


def _chunks(iterables: Tuple[Iterable[Any], ...]) -> List[List[Tuple[Any, ...]]]:
    """The arguments, in so many lists that the workers have some each."""
    calls = list(zip(*iterables))
    if not calls:
        raise TypeError("there is nothing to map, and so nothing to reduce")
    size = max(1, len(calls) // (4 * _size()))
    return [calls[at : at + size] for at in range(0, len(calls), size)]


# Functions by value: the workers of other hosts need no ipbroker for them.


def _beginner(function: Any) -> Callable[..., Optional[Tuple[Any]]]:
    def begin(file: str, *args: Any, **kwargs: Any) -> Optional[Tuple[Any]]:
        import os

        try:
            os.close(os.open(file, os.O_CREAT | os.O_EXCL))
        except OSError:
            return None
        return (function(*args, **kwargs),)

    return begin


def _lister(function: Any) -> Callable[[List[Tuple[Any, ...]]], List[Any]]:
    def results(calls: List[Tuple[Any, ...]]) -> List[Any]:
        return [function(*args) for args in calls]

    return results


def _reducer(function: Any, reduction: Any) -> Callable[[List[Tuple[Any, ...]]], Any]:
    def reduce(calls: List[Tuple[Any, ...]]) -> Any:
        from functools import reduce
        from itertools import starmap

        return reduce(reduction, starmap(function, calls))

    return reduce


def _scanner(function: Any, reduction: Any) -> Callable[[List[Tuple[Any, ...]]], List[Any]]:
    def scan(calls: List[Tuple[Any, ...]]) -> List[Any]:
        from itertools import accumulate, starmap

        return list(accumulate(starmap(function, calls), reduction))

    return scan
