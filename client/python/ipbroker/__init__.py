"""Python calls and shell commands on the engines of an ipbroker cluster.

    import ipbroker

    with ipbroker.Cluster(n=4) as cluster:
        client = cluster.client()
        with client.executor() as ex:
            print(ex.submit(pow, 2, 10).result())
            print(sum(ex.map(abs, range(-100_000, 0))))
"""

from ._native import __version__

# Type checkers take it for theirs. What is below it is imported when it is first used, and so is `typing`, which takes longer.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from .client import Client, current_client
    from .cluster import Cluster
    from .errors import (
        BadReply,
        ClosedError,
        ConnectionError,
        ControllerLost,
        EngineError,
        ForkError,
        ImpossibleDependency,
        InvalidDependency,
        IpbrokerError,
        JobError,
        MemoryLimit,
        PicklingError,
        RemoteError,
        RemoteTraceback,
        TaskAborted,
        TaskTimeout,
        TimeLimit,
        UnmetDependency,
    )
    from .executor import Executor
    from .futures import CallInfo, Future
    from .jobs import Jobs
    from .view import View

__all__ = [
    "BadReply",
    "CallInfo",
    "Client",
    "ClosedError",
    "Cluster",
    "ConnectionError",
    "ControllerLost",
    "EngineError",
    "Executor",
    "ForkError",
    "Future",
    "ImpossibleDependency",
    "InvalidDependency",
    "IpbrokerError",
    "JobError",
    "Jobs",
    "MemoryLimit",
    "PicklingError",
    "RemoteError",
    "RemoteTraceback",
    "TaskAborted",
    "TaskTimeout",
    "TimeLimit",
    "UnmetDependency",
    "View",
    "__version__",
    "current_client",
]

_PLACES = {
    "CallInfo": "futures",
    "Client": "client",
    "Cluster": "cluster",
    "Executor": "executor",
    "Future": "futures",
    "Jobs": "jobs",
    "View": "view",
    "current_client": "client",
}
"""The modules of names; the other names are errors."""

if not TYPE_CHECKING:

    def __getattr__(name):
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = globals()[name] = getattr(import_module("." + _PLACES.get(name, "errors"), __name__), name)
        return value

    def __dir__():
        return sorted({*globals(), *__all__})
