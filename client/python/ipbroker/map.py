"""Maps: many calls of one function. They travel as arrays, whose size follows from how long calls take."""

from __future__ import annotations

import io
import itertools
import operator
import threading
import time
import warnings
from collections import deque
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FuturesTimeout
from functools import cached_property
from typing import TYPE_CHECKING, Any, Callable, Deque, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

from . import _nested
from ._pickle import Calls, Pickled, dump_values, load, loads, pickled
from .errors import PicklingError, exception
from .futures import unpickled

if TYPE_CHECKING:
    from .view import View

FIRST = 64
"""Calls that are sent before it is known how long they take."""
AHEAD = 1.0
"""Seconds of work that are sent ahead of the results."""
MOST = 1 << 18
"""Calls that are sent ahead of the results, at most."""
PATIENCE = 10.0
"""Seconds after which it is said that a map which nobody reads keeps its executor from ending."""
ARRAY_BYTES = 8 << 20
"""Bytes of arguments of one array, and …"""
AHEAD_BYTES = 256 << 20
"""… of all that are sent ahead."""
GROWTH = 4
"""How much larger one array may be than the one before."""
TOGETHER = 0.02
"""Seconds of short calls that are one member of an array: one way to the engine's Python and back."""
TOGETHER_MOST = 4096
"""… and how many calls that are at most."""

_PLAIN = {bool, bytes, complex, float, int, str, type(None)}
"""What no call can change."""

# One part of an array: first member, one past the last, pickles (or one for all), failures by member.
Part = Tuple[int, int, Any, Any]


class Array:
    """One array on its way. Its members are calls, or lists of calls."""

    __slots__ = ("flow", "id", "count", "sizes", "bytes", "left", "parts", "cancelled")

    def __init__(self, flow: "Flow", count: int, sizes: Optional[List[int]], size: int) -> None:
        self.flow = flow
        self.id = ""
        self.count = count
        # How many calls each member is; None: each is one.
        self.sizes = sizes
        self.bytes = size
        self.left = count
        self.parts: Dict[int, Part] = {}
        self.cancelled = False

    def calls(self, lo: int, hi: int) -> int:
        """How many calls some members are."""
        return hi - lo if self.sizes is None else sum(self.sizes[lo:hi])

    def deliver(self, lo: int, hi: int, metadata: Optional[bytes], values: Any, failures: Any, duration: float) -> bool:
        """Takes what the results thread has; true if nothing more will come."""
        self.left -= hi - lo
        if not self.cancelled:
            self.flow.arrived(self, (lo, hi, values, failures), duration)
        return self.left <= 0


class Flow:
    """Sends arrays as results are consumed."""

    def __init__(self, view: "View", function: Callable[..., Any], iterables: Sequence[Iterable[Any]], arguments: Iterable[Any], timeout: Optional[float], chunksize: Optional[int], ordered: bool = True, buffersize: Optional[int] = None) -> None:
        if chunksize is not None and operator.index(chunksize) < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None and not isinstance(buffersize, int):
            raise TypeError("buffersize must be an integer or None")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        self.client = view.client
        self.link = view.client._link
        self.view = view
        self.one = pickled(function)
        self.name = self.one.name
        self.alone = bool(view._options.get("retries") or view._options.get("limit"))
        self.arguments = iter(arguments)
        # Whether they end, for whoever would read all of them (False with a buffersize, beyond which nothing is read); None: nobody knows.
        self.ends = False if buffersize is not None else _end(iterables)
        self.deadline = None if timeout is None else time.monotonic() + timeout
        self.timeout = timeout
        self.chunksize = chunksize
        self.buffersize = buffersize
        self.ordered = ordered
        self.changed = _nested.Condition(self.stop)
        # Whoever consumes and whoever shuts the executor down may both send: one array after the other, as the arguments come.
        self.sending = threading.RLock()
        # In order of submission; of an unordered map, those that are not consumed.
        self.arrays: Deque[Array] = deque()
        self.ready: Deque[Tuple[Array, Part]] = deque()
        self.ended = False
        # What reading or pickling arguments raised: raised again when everything before it is consumed.
        self.broken: Optional[BaseException] = None
        self.stopped = False
        # Whether somebody has asked for a result, or nobody ever will.
        self.begun = False
        self.dropped = False
        # Where such are kept until their executor is shut down.
        self.left: Optional[List["Flow"]] = None
        self.size = 0
        self.together = 1
        self.unbounded = False
        # When it is said that its executor cannot end as long as arguments come.
        self.tell = float("inf")
        # Calls and bytes that are sent and not consumed.
        self.calls = 0
        self.bytes = 0
        # Seconds of calls that have ended, and how many those were; the latest count most.
        self.seconds = 0.0
        self.measured = 0.0

    # By the results thread

    def arrived(self, array: Array, part: Part, duration: float) -> None:
        with self.changed:
            if duration > 0:
                self.seconds = 0.8 * self.seconds + duration
                self.measured = 0.8 * self.measured + array.calls(part[0], part[1])
            if self.dropped:
                self.discard(array, part)
            elif self.ordered:
                array.parts[part[0]] = part
            else:
                self.ready.append((array, part))
            self.changed.notify_all()

    def discard(self, array: Array, part: Part) -> None:
        """Nobody wants this result."""
        self.consumed(array, part)
        if array.left <= 0 and array in self.arrays:
            self.arrays.remove(array)

    # By whoever consumes

    def plan(self) -> Tuple[int, int]:
        """How many calls may be on their way, and how many of them are one member."""
        window, together = self.planned()
        if self.buffersize is not None:
            # Of calls, however many travel together.
            window = min(window, self.buffersize)
            together = min(together, max(1, window // 4))
        return window, together

    def planned(self) -> Tuple[int, int]:
        """The same, where nobody has said how many calls there may be."""
        engines = max(1, self.link.native.engine_count())
        least = max(FIRST, 4 * engines)
        # What is promised of each call alone cannot be kept of a list of them.
        together = 1 if self.alone else self.chunksize
        if not self.measured:
            return least, together or 1
        each = max(self.seconds / self.measured, 1e-7)
        window = int(min(max(AHEAD * engines / each, least), MOST))
        if self.chunksize is not None:
            window = max(window, 2 * engines * self.chunksize)
        if together is not None:
            return window, together
        # Many engines have many members, and memory is bounded.
        together = int(min(TOGETHER / each, TOGETHER_MOST, self.together * GROWTH * 4, max(1, window // (4 * engines))))
        return window, max(1, together)

    def fill(self) -> None:
        """Sends what there is room for."""
        with self.sending:
            self.send_some()

    def send_some(self) -> None:
        while not (self.ended or self.stopped):
            window, together = self.plan()
            if self.unbounded:
                room = window
            elif self.bytes >= AHEAD_BYTES:
                return
            else:
                room = window - self.calls
            size = max(min(window // 4, max(FIRST, self.size * GROWTH)), together)
            if room < size and self.calls:
                return
            self.together = together
            self.send(size, together)

    def send(self, size: int, together: int) -> None:
        """Reads so many arguments, or what there is, and sends them."""
        pickles: List[bytes] = []
        sizes: Optional[List[int]] = None if together == 1 else []
        python: Optional[str] = None
        count = total = 0
        try:
            while count < size and total < ARRAY_BYTES:
                if sizes is None:
                    args = next(self.arguments, None)
                    if args is None:
                        self.ended = True
                        break
                    data, needs = dump_values(args)
                    count += 1
                else:
                    calls = self.read(together)
                    if calls:
                        data, needs, calls = self.dump_many(calls)
                    if not calls:
                        break
                    sizes.append(len(calls))
                    count += len(calls)
                pickles.append(data)
                python = python or needs
                total += len(data)
                if self.ended:
                    break
        except Exception as error:
            self.ended = True
            self.broken = error
        if not pickles:
            return
        self.size = size
        if time.monotonic() > self.tell and not self.ended:
            self.tell = float("inf")
            warnings.warn(f"the executor ends when all arguments of the map of {self.name} have been read, and they still come: if they never end, press Ctrl-C", RuntimeWarning, stacklevel=2)
        array = Array(self, len(pickles), sizes, total)
        with self.changed:
            if self.stopped:
                return
            self.arrays.append(array)
            self.calls += count
            self.bytes += total
        try:
            array.id = self.link.submit_array(self.view._packed(self.one if sizes is None else self.many, self.link, python), pickles, array)
        except BaseException:
            with self.changed:
                if not array.cancelled:
                    self.arrays.remove(array)
                self.calls -= count
                self.bytes -= total
            raise
        if array.cancelled:
            # Stopped when it had no id yet.
            self.link.abort_soon([array.id])

    @cached_property
    def many(self) -> Pickled:
        """The function for lists of calls."""
        return self.one.many()

    def read(self, count: int) -> List[Any]:
        """The next arguments; fewer when they end, or raise."""
        calls: List[Any] = []
        try:
            for args in self.arguments:
                calls.append(args)
                if len(calls) == count:
                    return calls
        except Exception as error:
            self.broken = error
        self.ended = True
        return calls

    def dump_many(self, calls: List[Any]) -> Tuple[bytes, Optional[str], List[Any]]:
        """Calls as a pickle, and the Python that it needs; up to the first that cannot be pickled. What several of them are given is
        each one's own, unless a ``chunksize`` makes them one, as with other executors."""
        if self.chunksize is not None or _PLAIN.issuperset(map(type, itertools.chain.from_iterable(calls))):
            try:
                return (*dump_values((calls,)), calls)
            except PicklingError:
                pass
        pickles: List[bytes] = []
        python: Optional[str] = None
        for args in calls:
            try:
                data, needs = dump_values(args)
            except PicklingError as error:
                self.ended = True
                self.broken = error
                break
            pickles.append(data)
            python = python or needs
        if not pickles:
            return b"", None, []
        return dump_values((Calls(pickles),))[0], python, calls[: len(pickles)]

    def consumed(self, array: Array, part: Part) -> None:
        with self.changed:
            self.calls -= array.calls(part[0], part[1])
            self.bytes -= array.bytes * (part[1] - part[0]) // array.count

    def wait(self, there: Callable[[], Any]) -> Any:
        """What is there, as soon as it is."""
        self.link.check_wait(f"the map of {self.name}")
        with self.changed:
            while True:
                found = there()
                if found is not None:
                    return found
                left = None
                if self.deadline is not None:
                    left = self.deadline - time.monotonic()
                    if left <= 0:
                        raise FuturesTimeout(f"not all results of {self.name} are there after {self.timeout} s")
                self.changed.wait(left)

    def values(self) -> Iterator[Any]:
        """The results; what ends this early stops what has not ended."""
        try:
            if self.ordered:
                yield from self.in_order()
            else:
                yield from self.as_they_come()
            if self.broken is not None:
                raise self.broken
        finally:
            self.stop()

    def in_order(self) -> Iterator[Any]:
        while True:
            if not self.arrays:
                self.fill()
                if not self.arrays:
                    return
            array = self.arrays[0]
            at = 0
            while at < array.count:
                part = self.wait(lambda: self.broken if array.cancelled else array.parts.pop(at, None))
                if isinstance(part, BaseException):
                    return  # which raises it
                self.consumed(array, part)
                # New work goes out before the results are looked at.
                self.fill()
                yield from self.of(array, part)
                at = part[1]
            with self.changed:
                if self.arrays:
                    self.arrays.popleft()

    def as_they_come(self) -> Iterator[Any]:
        while True:
            if not self.calls:
                self.fill()
                if not self.calls:
                    return
            found = self.wait(lambda: self.broken if self.stopped else self.ready.popleft() if self.ready else None)
            if isinstance(found, BaseException):
                return  # which raises it
            array, part = found
            self.consumed(array, part)
            with self.changed:
                if array.left <= 0 and array in self.arrays and not any(other is array for other, _ in self.ready):
                    self.arrays.remove(array)
            self.fill()
            yield from self.of(array, part)

    def of(self, array: Array, part: Part) -> Iterator[Any]:
        """The values of a part; the first failure among them is raised at its place."""
        lo, hi, values, failures = part
        if values is None:
            raise exception(failures)
        if isinstance(values, bytes):
            values = [values] * (hi - lo)
        for index, data in enumerate(values, lo):
            failure = None
            if data is None:
                failure = failures[index]
                data = failure[5]
            elif array.sizes is None:
                yield self.unpickled(loads, data)
                continue
            if data is not None:
                yield from self.listed(data)
            if failure is not None:
                raise exception(failure)

    def unpickled(self, read: Callable[[Any], Any], data: Any) -> Any:
        """What is read: a result, or several."""
        try:
            return read(data)
        except Exception as error:
            raise unpickled(self.name, error) from error

    def listed(self, data: bytes) -> Iterator[Any]:
        """The values of one member that is a list of calls: pickled lists, one behind the other."""
        file = io.BytesIO(data)
        while file.tell() < len(data):
            results = self.unpickled(load, file)
            if isinstance(results, tuple):
                yield from results[0]
                raise exception(results[1])
            # Nothing is kept of what was given away.
            results.reverse()
            while results:
                yield results.pop()

    def stop(self) -> None:
        """Ends what has not ended, and reads no more."""
        if self.stopped:
            return
        self.stopped = True
        if self.link.forked:
            return  # the calls are the parent's, and so may be the lock
        with self.changed:
            unfinished = [array for array in self.arrays if array.left > 0]
            for array in self.arrays:
                array.cancelled = True
                array.parts.clear()
            self.arrays.clear()
            self.ready.clear()
            self.changed.notify_all()
        if unfinished:
            self.link.abort_soon([array.id for array in unfinished if array.id])

    def cancel(self) -> None:
        """Stops, and whoever still wants results is told so."""
        if not self.stopped:
            self.ended = True
            self.broken = CancelledError()
            self.stop()

    def send_all(self) -> None:
        """Reads all arguments, and sends them."""
        self.unbounded = True
        self.fill()

    def drop(self) -> None:
        """Nobody has asked for a result, and nobody will. As with other executors all calls run, if their arguments are known to end.
        If nobody knows, they are read when the executor is shut down; those of a view are not read, as they may never end."""
        with self.changed:
            self.dropped = True
            there = [*self.ready, *((array, part) for array in self.arrays for part in array.parts.values())]
            self.ready.clear()
            for array, part in there:
                array.parts.clear()
                self.discard(array, part)
        if self.ended:
            return
        if self.ends:
            self.send_all()
        elif self.ends is None and self.left is not None:
            self.left.append(self)
        elif self.ends is None or self.buffersize is not None:
            self.read_no_more()
        else:
            self.stop()

    def read_no_more(self) -> None:
        """Leaves it at what is sent."""
        if self.ends is None and not (self.ended or self.begun):
            warnings.warn(f"nobody reads the results of the map of {self.name}: it ends after its first calls, as its arguments may never end; give it a list of them", RuntimeWarning, stacklevel=3)
        self.ended = True

    def drain(self) -> None:
        """For an executor that is shut down: all calls run, whether or not their results are consumed."""
        self.tell = time.monotonic() + PATIENCE
        if self.ends is False or (self.begun and self.ends is None):
            self.ended = True
        elif not self.dropped:
            self.send_all()
        while True:
            if self.dropped:
                self.fill()
            with self.changed:
                busy = any(array.left > 0 for array in self.arrays)
                if self.stopped or (self.ended and not busy):
                    return
                if busy:
                    self.changed.wait()

    def begin(self) -> "MapIterator":
        """Sends the first calls; the results of all."""
        self.fill()
        return MapIterator(self)


class MapIterator(Iterator[Any]):
    """The results of a map. When it is closed, or collected after its beginning, calls that have not ended are stopped, and no more
    arguments are read; one that is dropped at once, as in ``ex.map(print, items)``, lets all of its calls run: see :meth:`Flow.drop`."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._values = flow.values()
        self._closed = False

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self._flow.begun = True
        return next(self._values)

    def close(self) -> None:
        """Stops what has not ended."""
        self._closed = True
        self._values.close()  # type: ignore[attr-defined]
        self._flow.stop()

    def __del__(self) -> None:
        if self._closed or self._flow.link.forked:
            return
        if self._flow.begun:
            self.close()
        else:
            self._flow.drop()

    def __repr__(self) -> str:
        return f"<ipbroker.MapIterator of {self._flow.name}: {self._flow.calls} calls on their way>"


_ENDLESS = (itertools.count, itertools.cycle, itertools.repeat)


def _end(iterables: Sequence[Iterable[Any]]) -> Optional[bool]:
    """Whether what is read from all of them together ends; None: nobody knows."""
    if not iterables or any(operator.length_hint(iterable, -1) >= 0 for iterable in iterables):
        return True
    return False if all(isinstance(iterable, _ENDLESS) for iterable in iterables) else None
