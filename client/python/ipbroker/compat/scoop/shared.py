"""SCOOP's constants: what one process sets, all workers can read."""

from __future__ import annotations

import os
import pickle
import time
from typing import Any, Callable, Dict, List, Optional

from ...errors import IpbrokerError
from ...view import View
from . import futures

__all__ = ["getConst", "setConst"]

_pickles: Dict[str, bytes] = {}
_values: Dict[str, Any] = {}


def setConst(**kwargs: Any) -> None:
    """Sets constants, by name, for all workers; returns when they have them. One that exists is a :class:`TypeError`."""
    import cloudpickle

    view = _view()
    for name, value in kwargs.items():
        data = cloudpickle.dumps(value, 5)
        answers = [_put(name, data)]
        if answers[0] is None and view is not None:
            answers += _ask(view, _sender(name, data))
        for answer in answers:
            if answer is not None:
                raise TypeError(answer)


def getConst(name: str, timeout: float = 0.1) -> Any:
    """A constant; None if there is none after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while name not in _values:
        data = _pickles.get(name)
        if data is None:
            # Set in a task, or before this worker was there.
            view = _view()
            if view is not None:
                data = next((found for found in _ask(view, _fetcher(name), deadline) if found is not None), None)
        if data is not None:
            _put(name, data)
            _values[name] = pickle.loads(data)
        elif time.monotonic() >= deadline:
            return None
        else:
            time.sleep(0.01)
    return _values[name]


def _view() -> Optional[View]:
    """What reaches the other workers; None on a host from which they cannot be reached."""
    calls = futures._calls()
    return calls if isinstance(calls, View) else calls._view


def _put(name: str, data: bytes) -> Optional[str]:
    """Keeps a constant here; what is wrong, in words."""
    if _pickles.setdefault(name, data) is not data:
        return f"This constant already exists: {name}."
    return None


def _ask(view: View, function: Callable[[], Any], deadline: Optional[float] = None) -> List[Any]:
    """Calls a function on all workers but this one; the answers that come before the deadline."""
    me = os.environ.get("IPBROKER_ENGINE_ID")
    others = [engine["uuid"] for engine in view.client.engines if str(engine["id"]) != me]
    calls = [view(targets=[uuid], priority=1 << 30).submit(function) for uuid in others]
    answers = []
    for call in calls:
        try:
            answers.append(call.result(None if deadline is None else max(0.0, deadline - time.monotonic())))
        except futures.TimeoutError:
            call.cancel()  # it is busy
        except (IpbrokerError, futures.CancelledError):
            pass  # it has left meanwhile
    return answers


def _sender(name: str, data: bytes) -> Callable[[], Any]:
    def send() -> Optional[str]:
        try:
            from ipbroker.compat.scoop import shared
        except ImportError:
            import platform

            return f"constants need the package ipbroker on {platform.node()}: pip install ipbroker"
        return shared._put(name, data)

    return send


def _fetcher(name: str) -> Callable[[], Any]:
    def fetch() -> Optional[bytes]:
        try:
            from ipbroker.compat.scoop import shared
        except ImportError:
            return None
        return shared._pickles.get(name)

    return fetch
