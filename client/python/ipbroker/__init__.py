"""Python calls and shell commands on the engines of an ipbroker cluster.

    import ipbroker

    with ipbroker.Cluster(n=4) as cluster:
        client = cluster.client()
        with client.executor() as ex:
            print(ex.submit(pow, 2, 10).result())
            print(sum(ex.map(abs, range(-100_000, 0))))
"""

from typing import TYPE_CHECKING, Any

from ._native import __version__
from .client import Client, current_client
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

if TYPE_CHECKING:
    from .cluster import Cluster

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


def __getattr__(name: str) -> Any:
    # What starts processes is half of the time that the import would take, and clients do not need it.
    if name == "Cluster":
        from .cluster import Cluster

        return Cluster
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
