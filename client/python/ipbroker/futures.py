"""The future of a call."""

from __future__ import annotations

import concurrent.futures
import threading
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED, PENDING
from typing import TYPE_CHECKING, Any, Dict, Generator, Iterator, List, Mapping, Optional, TypeVar

from . import _native, _nested
from ._pickle import loads
from .errors import Failure, IpbrokerError, exception

if TYPE_CHECKING:
    from .client import Link

T = TypeVar("T")
_DONE = (FINISHED, CANCELLED, CANCELLED_AND_NOTIFIED)


class CallInfo(Mapping[str, Any]):
    """What is known of a call: ``id``, ``name``, ``submitted``, and when it has ended ``engine_id``, ``host``, ``started``,
    ``completed`` (:class:`datetime.datetime`), ``duration`` (s), ``stdout``, ``stderr``, ``status``, ``attempt``.
    Keys are attributes, too; what is not known yet is None."""

    __slots__ = ("_values",)
    _KEYS = ("id", "name", "status", "engine_id", "host", "submitted", "started", "completed", "duration", "stdout", "stderr", "attempt")

    def __init__(self, values: Dict[str, Any]) -> None:
        self._values = {key: values.get(key) for key in self._KEYS}

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __getattr__(self, key: str) -> Any:
        try:
            return self._values[key]
        except KeyError:
            raise AttributeError(f"a call's info has no {key!r}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        shown = ", ".join(f"{key}={value!r}" for key, value in self._values.items() if value is not None and value != "")
        return f"CallInfo({shown})"


def call_info(known: Dict[str, Any], submitted: float, metadata: Optional[bytes], content: Optional[bytes], index: Optional[int]) -> CallInfo:
    """Reads what a reply tells of its call, which may be member ``index`` of an array."""
    from datetime import datetime, timezone

    known["submitted"] = datetime.fromtimestamp(submitted, timezone.utc).astimezone()
    if metadata is not None:
        known.update(_native.reply_info(metadata, content, index))
    for key in ("started", "completed"):
        text = known.get(key)
        if isinstance(text, str) and text:
            # Python 3.9 does not read the Z.
            known[key] = datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone()
    return CallInfo(known)


class Future(concurrent.futures.Future):  # type: ignore[type-arg]
    """A :class:`concurrent.futures.Future` of a call on the cluster. It can be awaited, too.

    ``id`` is the task's id, ``info`` what is known of it; ``cancel()`` ends a call that runs, too.
    """

    id: str

    # Most calls have ended before anybody waits for them: what that takes is made when somebody does.
    _made: Optional[threading.Condition] = None
    # A finalizer or a signal's handler may use another future meanwhile.
    _making = threading.RLock()
    _state = PENDING
    _result: Any = None
    _exception: Optional[BaseException] = None
    _told: Any = None
    _tag = -1
    _owner: Any = None
    _client: Any = None

    def __init__(self, link: "Link", name: str, submitted: float) -> None:
        self._link = link
        self._name = name
        self._submitted = submitted

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        """For all that ``concurrent.futures`` does with a future; what belongs to it comes with it."""
        if self._link.forked:
            self._check()
        if self._made is None:
            made = threading.Condition()
            waiters: List[Any] = _nested.Waiters(self) if _nested.in_call() else []
            callbacks: List[Any] = []
            with self._making:
                if self._made is None:
                    self._waiters, self._done_callbacks = waiters, callbacks
                    self._made = made
        return self._made

    @property
    def info(self) -> CallInfo:
        """What is known of the call."""
        known = {"id": getattr(self, "id", None), "name": self._name}
        return call_info(known, self._submitted, *(self._told or (None, None, None)))

    def cancel(self) -> bool:
        """Cancels the call. One that runs is stopped: SIGINT first, then harder. False if it has ended already."""
        if not super().cancel():
            return False
        if self._end():
            self._link.abort_soon([self.id])
        return True

    def _end(self) -> bool:
        """Tells waiters that it is cancelled; False if they knew."""
        with self._condition:
            if self._state != CANCELLED:
                return False
        self.set_running_or_notify_cancel()
        self._link.forget(self)
        return True

    def result(self, timeout: Optional[float] = None) -> Any:
        """The call's result, or what it raised."""
        if self._state == FINISHED and self._exception is None:
            return self._result
        self._check()
        return super().result(_nested.wait(self, timeout))

    def done(self) -> bool:
        """Whether the call has ended, or was cancelled."""
        return self._state in _DONE

    def running(self) -> bool:
        """Whether an engine works on the call just now: the cluster is asked each time."""
        self._link.check_fork(f"the call {self._name}")
        if self._state != PENDING or not hasattr(self, "id"):
            return False
        try:
            return self._link.native.running(self.id) and self._state == PENDING
        except (IpbrokerError, TimeoutError):
            return False  # closed, or nobody knows

    def exception(self, timeout: Optional[float] = None) -> Optional[BaseException]:
        """What the call raised, or None."""
        self._check()
        return super().exception(_nested.wait(self, timeout))

    def _check(self) -> None:
        if self._state not in _DONE:
            self._link.check_wait(f"the call {self._name}")

    def __await__(self) -> Generator[Any, None, Any]:
        import asyncio

        awaited = asyncio.wrap_future(self)
        return (_nested.coroutine(self, awaited) if _nested.in_call() else awaited).__await__()

    def __repr__(self) -> str:
        state = {FINISHED: "finished", CANCELLED: "cancelled", CANCELLED_AND_NOTIFIED: "cancelled"}.get(self._state, "pending")
        if state == "finished" and self._exception is not None:
            state = f"raised {type(self._exception).__name__}"
        return f"<ipbroker.Future {self._name} {getattr(self, 'id', '')} {state}>"

    def __reduce__(self) -> Any:
        raise TypeError("a future cannot be sent to another process: send its result(); after=[future] has a call wait for it")

    # What follows is called by the thread that fetches results.

    def _succeed(self, metadata: Optional[bytes], data: bytes, outside: Optional[List[bytearray]], content: Optional[bytes], index: Optional[int] = None) -> None:
        self._told = (metadata, content, index)
        try:
            value = loads(data, buffers=outside)
        except BaseException as error:
            self._settle(None, unpickled(self._name, error))
        else:
            self._settle(value, None)

    def _fail(self, metadata: Optional[bytes], failure: Failure, content: Optional[bytes] = None, index: Optional[int] = None) -> None:
        self._told = (metadata, content, index)
        if failure[4]:
            # Aborted, by whomever.
            if super().cancel():
                self._end()
            return
        self._settle(None, exception(failure))

    def _settle(self, value: Any, error: Optional[BaseException]) -> None:
        with self._making:
            if self._made is None:
                self._result, self._exception = value, error
                self._state = FINISHED
                return
        try:
            if error is None:
                self.set_result(value)
            else:
                self.set_exception(error)
        except concurrent.futures.InvalidStateError:
            pass  # cancelled in between


def unpickled(name: str, error: BaseException) -> BaseException:
    """What is said of a result whose pickle cannot be read."""
    from .errors import RemoteError

    wrapped = RemoteError("UnpicklingError", f"the result of {name} cannot be unpickled here: {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
