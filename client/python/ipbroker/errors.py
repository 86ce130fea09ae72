"""What can go wrong, on this side and on the engines'."""

from __future__ import annotations

import builtins
import pickle
from concurrent.futures import CancelledError
from typing import Any, Optional, Sequence, Tuple

Failure = Tuple[str, str, Sequence[str], Optional[bytes], bool, Optional[bytes]]
"""How the native module tells why a call has no result: ename, evalue, traceback, the pickled exception, aborted, and pickles of
what came before it in a list of calls."""


class IpbrokerError(Exception):
    """The root of this package's errors."""


class ConnectionError(IpbrokerError, builtins.ConnectionError):
    """No controller, no connection file, or not the one that signs with our key."""


class ClosedError(IpbrokerError, RuntimeError):
    """The client is closed."""


class ForkError(IpbrokerError, RuntimeError):
    """A call that another process submitted: only that one gets its result."""


class JobError(IpbrokerError, ValueError):
    """A job line that is none, or jobs that wait for each other."""


class PicklingError(IpbrokerError, pickle.PicklingError):
    """A function, an argument or a result that cannot be sent; the text names it."""


class RemoteTraceback(Exception):
    """The traceback of an exception on its engine, as text: the ``__cause__`` of what a call raised."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text.rstrip()}\n"""'


class RemoteError(IpbrokerError):
    """A call failed, and its exception could not be brought here: ``ename``, ``evalue``, ``traceback`` tell of it."""

    def __init__(self, ename: str, evalue: str, traceback: Sequence[str] = ()) -> None:
        super().__init__(ename, evalue, list(traceback))
        self.ename = ename
        self.evalue = evalue
        self.traceback = list(traceback)

    def __str__(self) -> str:
        named = type(self).__name__ == self.ename
        return self.evalue if named else f"{self.ename}: {self.evalue}"


class EngineError(RemoteError):
    """The engine, or its Python, died or left amid the call; the text names the signal."""


class UnmetDependency(RemoteError):
    """The engine lacks what the call needs."""


class ImpossibleDependency(RemoteError):
    """No engine can run the call, or what it waits for has not ended as asked."""


class InvalidDependency(RemoteError):
    """A dependency is unknown."""


class TaskTimeout(RemoteError, TimeoutError):
    """The call has waited longer than its ``timeout``."""


class TimeLimit(RemoteError, TimeoutError):
    """The call has run longer than its limit."""


class MemoryLimit(RemoteError, MemoryError):
    """The call has used more memory than its limit."""


class ControllerLost(RemoteError):
    """The controller has gone, and did not come back in time."""


class BadReply(RemoteError):
    """An engine's answer makes no sense."""


class TaskAborted(RemoteError, CancelledError):
    """The call was aborted, here or by others."""


_BY_NAME = {
    kind.__name__: kind
    for kind in (
        EngineError,
        UnmetDependency,
        ImpossibleDependency,
        InvalidDependency,
        TaskTimeout,
        TimeLimit,
        MemoryLimit,
        ControllerLost,
        BadReply,
        TaskAborted,
    )
}


def exception(failure: Failure) -> BaseException:
    """The exception that a failure is raised as: the call's own if it can be unpickled here."""
    ename, evalue, traceback, pickled, aborted, _ = failure
    text = "".join(line if line.endswith("\n") else line + "\n" for line in traceback)
    error: Optional[BaseException] = None
    if aborted:
        error = TaskAborted(ename, evalue, traceback)
    elif pickled is not None:
        from ._pickle import loads

        try:
            loaded: Any = loads(pickled)
            # What cannot be sent from there is the same error as what cannot be sent from here.
            if isinstance(loaded, BaseException) and type(loaded) is not pickle.PicklingError:
                error = loaded
        except BaseException as reason:  # its class is known there only, or its __init__ wants other arguments
            note = f"(its exception could not be unpickled here: {type(reason).__name__}: {reason})\n"
            text += note
    if error is None:
        if ename == "Closed":
            error = ClosedError(evalue)
        elif ename == "PicklingError":
            error = PicklingError(evalue)
        elif ename in _BY_NAME:
            error = _BY_NAME[ename](ename, evalue, traceback)
        else:
            error = RemoteError(ename, evalue, traceback)
    if text:
        error.__cause__ = RemoteTraceback(text)
    return error
