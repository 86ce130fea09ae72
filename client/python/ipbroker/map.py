"""Maps: many calls of one function. They travel as arrays, whose size follows from how long calls take."""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FuturesTimeout
from typing import TYPE_CHECKING, Any, Callable, Deque, Dict, Iterable, Iterator, List, Optional, Tuple

from ._pickle import dump_values, loads
from .errors import exception

if TYPE_CHECKING:
    from .view import View

FIRST = 64
"""Calls that are sent before it is known how long they take."""
AHEAD = 1.0
"""Seconds of work that are sent ahead of the results."""
MOST = 1 << 17
"""Calls that are sent ahead of the results, at most."""
ARRAY_BYTES = 8 << 20
"""Bytes of arguments of one array, and …"""
AHEAD_BYTES = 256 << 20
"""… of all that are sent ahead."""
GROWTH = 4
"""How much larger one array may be than the one before."""

# One part of an array: first member, one past the last, metadata, pickles (or one for all), failures by member.
Part = Tuple[int, int, Optional[bytes], Any, Any]


class _Array:
    """One array on its way."""

    __slots__ = ("flow", "id", "count", "bytes", "left", "parts", "cancelled")

    def __init__(self, flow: "Flow", count: int, size: int) -> None:
        self.flow = flow
        self.id = ""
        self.count = count
        self.bytes = size
        self.left = count
        self.parts: Dict[int, Part] = {}
        self.cancelled = False

    def deliver(self, lo: int, hi: int, metadata: Optional[bytes], values: Any, failures: Any, duration: float) -> bool:
        """Takes what the results thread has; true if nothing more will come."""
        self.left -= hi - lo
        if not self.cancelled:
            self.flow.arrived(self, (lo, hi, metadata, values, failures), duration)
        return self.left <= 0


class Flow:
    """Sends arrays as results are consumed."""

    def __init__(self, view: "View", function: Callable[..., Any], arguments: Iterator[Any], length: Optional[int], timeout: Optional[float], chunksize: Optional[int], ordered: bool) -> None:
        self.client = view.client
        self.link = view.client._link
        self.call, self.name = view._call(function, self.link)
        self.arguments = arguments
        self.length = length
        self.deadline = None if timeout is None else time.monotonic() + timeout
        self.timeout = timeout
        self.chunksize = chunksize
        self.ordered = ordered
        self.changed = threading.Condition()
        # In order of submission; of an unordered map, those that are not consumed.
        self.arrays: Deque[_Array] = deque()
        self.ready: Deque[Tuple[_Array, Part]] = deque()
        self.ended = False
        # What reading or pickling arguments raised: raised again when everything before it is consumed.
        self.broken: Optional[BaseException] = None
        self.stopped = False
        # Whether somebody has asked for a result.
        self.begun = False
        self.size = 0
        self.unbounded = False
        # Calls and bytes that are sent and not consumed.
        self.calls = 0
        self.bytes = 0
        # Seconds of calls that have ended, and how many those were.
        self.seconds = 0.0
        self.measured = 0

    # By the results thread

    def arrived(self, array: _Array, part: Part, duration: float) -> None:
        with self.changed:
            if duration > 0:
                self.seconds += duration
                self.measured += part[1] - part[0]
            if self.ordered:
                array.parts[part[0]] = part
            else:
                self.ready.append((array, part))
            self.changed.notify_all()

    # By whoever consumes

    def window(self) -> int:
        """How many calls may be on their way."""
        least = max(FIRST, 4 * self.link.native.engine_count())
        if not self.measured:
            return least
        each = self.seconds / self.measured
        engines = max(1, self.link.native.engine_count())
        return int(min(max(AHEAD * engines / max(each, 1e-7), least), MOST))

    def fill(self) -> None:
        """Sends what there is room for."""
        while not (self.ended or self.stopped):
            window = self.window()
            room = window - self.calls
            if self.unbounded:
                room = max(room, window // 2)
            if self.chunksize is not None:
                size = self.chunksize
                # At least one chunk an engine, twice.
                if not self.unbounded and self.calls and room < size and self.calls >= 2 * size * max(1, self.link.native.engine_count()):
                    return
            else:
                size = min(max(window // 4, 1), max(FIRST, self.size * GROWTH))
                if room < size or (self.bytes >= AHEAD_BYTES and not self.unbounded):
                    return
            self.send(size)

    def send(self, size: int) -> None:
        """Reads so many arguments, or what there is, and sends them."""
        pickles: List[bytes] = []
        total = 0
        try:
            for args in self.arguments:
                data = dump_values(args)
                pickles.append(data)
                total += len(data)
                if len(pickles) >= size or total >= ARRAY_BYTES:
                    break
            else:
                self.ended = True
        except Exception as error:
            self.ended = True
            self.broken = error
        if not pickles:
            return
        self.size = size
        array = _Array(self, len(pickles), total)
        with self.changed:
            self.arrays.append(array)
        try:
            array.id = self.link.submit_array(self.call, pickles, array)
        except BaseException:
            with self.changed:
                self.arrays.remove(array)
            raise
        self.calls += array.count
        self.bytes += total

    def consumed(self, array: _Array, part: Part) -> None:
        count = part[1] - part[0]
        self.calls -= count
        self.bytes -= array.bytes * count // array.count

    def wait(self, there: Callable[[], Any]) -> Any:
        """What is there, as soon as it is."""
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
                yield from self.of(part)
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
            if array.left <= 0:
                with self.changed:
                    if array in self.arrays and not any(other is array for other, _ in self.ready):
                        self.arrays.remove(array)
            self.fill()
            yield from self.of(part)

    def of(self, part: Part) -> Iterator[Any]:
        """The values of a part; the first failure among them is raised at its place."""
        lo, hi, _, values, failures = part
        if values is None:
            raise exception(failures)
        if isinstance(values, bytes):
            for _ in range(lo, hi):
                yield loads(values)
            return
        if not failures:
            for data in values:
                yield loads(data)
            return
        for index, data in enumerate(values, lo):
            if data is None:
                raise exception(failures[index])
            yield loads(data)

    def stop(self) -> None:
        """Ends what has not ended, and reads no more."""
        if self.stopped:
            return
        self.stopped = True
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
        close = getattr(self.arguments, "close", None)
        if close is not None:
            close()

    def send_all(self) -> None:
        """Reads all arguments, and sends them."""
        self.unbounded = True
        self.fill()

    def cancel(self) -> None:
        """Stops, and whoever still wants results is told so."""
        if not self.stopped:
            self.ended = True
            self.broken = CancelledError()
            self.stop()

    def drain(self) -> None:
        """For an executor that is shut down: all calls run, whether or not their results are consumed."""
        if self.begun and self.length is None:
            self.ended = True
        else:
            self.send_all()
        while True:
            with self.changed:
                if self.stopped or all(array.left <= 0 for array in self.arrays):
                    return
                self.changed.wait()


class MapIterator(Iterator[Any]):
    """The results of a map. When it is closed or collected after its beginning, calls that have not ended are stopped;
    one that is dropped at once, as in ``ex.map(print, items)``, lets all of its calls run."""

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
        elif not self._flow.ended:
            self._flow.send_all()

    def __repr__(self) -> str:
        return f"<ipbroker.MapIterator of {self._flow.name}: {self._flow.calls} calls on their way>"


def map_calls(view: "View", function: Callable[..., Any], arguments: Iterable[Any], length: Optional[int], timeout: Optional[float], chunksize: Optional[int], ordered: bool = True) -> MapIterator:
    """Begins a map."""
    if chunksize is not None and chunksize < 1:
        raise ValueError("chunksize must be >= 1.")
    flow = Flow(view, function, iter(arguments), length, timeout, chunksize, ordered)
    flow.fill()
    return MapIterator(flow)
