"""Parallel Python (``pp``, ``ppft``) on ipbroker: ``from ipbroker.compat import pp`` in place of ``import pp``.

A server is a private cluster: local engines and, for ``ppservers``, engines that are started over SSH. Functions travel by
value, as they do with pp, so that the hosts need none of the program's own files.
"""

from __future__ import annotations

import itertools
import logging
import os
import sys
import threading
import time
import types
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Set, Tuple, Union

from ..cluster import Cluster
from ..errors import ClosedError, IpbrokerError, RemoteTraceback
from ..futures import Future
from ._engines import LocalEngines

__all__ = ["DestroyedServerError", "Server", "Template"]

_logger = logging.getLogger("pp")
_LOCAL = "pp-local"
"""The tag of local engines."""


class DestroyedServerError(RuntimeError):
    """The server was destroyed before the job was done."""


class _Job:
    """A job: called, it waits, and gives the function's result."""

    def __init__(self, server: "Server", tid: int, group: str, callback: Optional[Callable[..., Any]], callbackargs: Tuple[Any, ...]) -> None:
        self.server = server
        self.tid = tid
        self.group = group
        self._callback = callback
        self._callbackargs = callbackargs
        self._future: Optional[Future] = None
        self._called = threading.Event() if callback is not None else None
        self._told = False

    @property
    def finished(self) -> bool:
        """Whether the function has ended, and its callback too."""
        return self._future is not None and self._future.done() and (self._called is None or self._called.is_set())

    def wait(self) -> None:
        """Waits until the function has ended, and its callback too."""
        assert self._future is not None
        self._future.exception()
        if self._called is not None:
            self._called.wait()

    def __call__(self) -> Any:
        """The function's result. What a function raises is printed, and its result is None, as with pp."""
        assert self._future is not None
        error = self._future.exception()
        if error is None:
            result = self._future.result()
        elif isinstance(error, ClosedError):
            raise DestroyedServerError("the server was destroyed before the job was done") from None
        elif isinstance(error, IpbrokerError):
            raise error  # nothing that the function did
        else:
            result = None
            self._tell(error)
        if self._called is not None and threading.current_thread() is not self._thread:
            self._called.wait()
        return result

    def _tell(self, error: BaseException) -> None:
        with _lock:
            told, self._told = self._told, True
        if not told:
            cause = error.__cause__
            text = cause.text if isinstance(cause, RemoteTraceback) else repr(error)
            print(f"An error has occured during the function execution\n{text.rstrip()}", flush=True)

    def _ended(self, _: object) -> None:
        if self._callback is None:
            self._finish()
        else:
            # Not in the thread that fetches results: a callback may wait for other jobs.
            self._thread = threading.Thread(target=self._call_back, name=f"pp-callback-{self.tid}", daemon=True)
            self._thread.start()

    _thread: Optional[threading.Thread] = None

    def _call_back(self) -> None:
        assert self._callback is not None
        try:
            self._callback(*self._callbackargs, self())
        except DestroyedServerError:
            pass
        finally:
            self._finish()

    def _finish(self) -> None:
        if self._called is not None:
            self._called.set()
        self.server._unfinished.discard(self)


class _Statistics:
    """What one server has done: ``ncpus``, ``njobs``, and the ``time`` (s) that they took."""

    def __init__(self, ncpus: int, njobs: int, time: float) -> None:
        self.ncpus = ncpus
        self.njobs = njobs
        self.time = time


class Template:
    """A function with what it needs, for jobs that differ in their arguments only."""

    def __init__(
        self,
        job_server: "Server",
        func: Callable[..., Any],
        depfuncs: Tuple[Any, ...] = (),
        modules: Tuple[str, ...] = (),
        callback: Optional[Callable[..., Any]] = None,
        callbackargs: Tuple[Any, ...] = (),
        group: str = "default",
        globals: Optional[Dict[str, Any]] = None,
    ) -> None:
        self._server = job_server
        self._func = func
        self._more = (depfuncs, modules, callback, callbackargs, group, globals)

    def submit(self, *args: Any) -> _Job:
        """Runs the function with these arguments."""
        return self._server.submit(self._func, args, *self._more)


class Server:
    """Runs jobs on local engines and on those of other hosts.

    ``ncpus``: local engines, by default one a core. ``ppservers``: a tuple of hosts that ``ssh`` reaches without a password;
    each gets an engine a core, and no ``ppserver`` needs to run there: a port (``host:60000``) is part of the name only.
    ``secret``, ``proto`` and ``socket_timeout`` have no use here, which is logged.
    """

    def __init__(
        self,
        ncpus: Union[int, str] = "autodetect",
        ppservers: Tuple[str, ...] = (),
        secret: Optional[str] = None,
        restart: bool = False,
        proto: int = 2,
        socket_timeout: int = 3600,
    ) -> None:
        if not isinstance(ppservers, tuple):
            raise TypeError("ppservers argument must be a tuple")
        if restart:
            raise ValueError("restart=True: the engines' interpreters cannot be started anew for each job")
        for name, given, why in (
            ("secret", secret is not None, "the cluster has a key of its own"),
            ("proto", proto != 2, "pickles are of protocol 5"),
            ("socket_timeout", socket_timeout != 3600, "the cluster watches its connections by heartbeats"),
        ):
            if given:
                _logger.warning("pp: %s has no use here: %s", name, why)
        self._nodes = {}
        for node in ppservers:
            host = node.split(":")[0]
            if not host or "*" in host:
                raise ValueError(f"ppservers: {node!r} names no host; servers are not searched for, hosts are reached over SSH")
            self._nodes[host] = node
        self._ncpus = 0
        self._numbers = itertools.count()
        self._unfinished: Set[_Job] = set()
        self._jobs: Dict[Any, Callable[..., Any]] = {}
        count = _ncpus(ncpus)
        if ppservers:
            self._cluster = Cluster(hosts=list(self._nodes), tunnel=True, python="python3")
        else:
            self._cluster = Cluster(0)
        self._local = LocalEngines(self._cluster, _LOCAL)
        self._client = self._cluster.client()
        self._created = time.time()
        try:
            self.set_ncpus(count)
        except BaseException:
            self.destroy()
            raise

    def submit(
        self,
        func: Callable[..., Any],
        args: Tuple[Any, ...] = (),
        depfuncs: Tuple[Any, ...] = (),
        modules: Tuple[str, ...] = (),
        callback: Optional[Callable[..., Any]] = None,
        callbackargs: Tuple[Any, ...] = (),
        group: str = "default",
        globals: Optional[Dict[str, Any]] = None,
    ) -> _Job:
        """Runs ``func(*args)``, and returns at once with the job.

        ``depfuncs``: functions and classes that it finds by their names, ``modules``: what is imported for it (also
        ``"import x as y"``). ``callback(*callbackargs, result)`` is called, in a thread, when it has ended. ``group``: for
        :meth:`wait`. ``globals``: a dictionary whose modules and functions it finds, too.
        """
        if not self._local.stop.alive:
            raise DestroyedServerError("Cannot submit jobs: server instance has been destroyed")
        if not callable(func):
            raise TypeError("func argument must be a function")
        for name, value in (("args", args), ("depfuncs", depfuncs), ("modules", modules), ("callbackargs", callbackargs)):
            if not isinstance(value, tuple):
                raise TypeError(f"{name} argument must be a tuple")
        if not all(isinstance(module, str) for module in modules):
            raise TypeError("modules argument must be a tuple of strings")
        if globals is not None:
            if not isinstance(globals, dict):
                raise TypeError("globals argument must be a dictionary")
            depfuncs += tuple(value for value in globals.values() if isinstance(value, types.FunctionType))
            modules += tuple(f"import {value.__name__} as {name}" for name, value in globals.items() if isinstance(value, types.ModuleType) and not name.startswith("__") and value.__name__ != __name__)
        job = _Job(self, next(self._numbers), group, callback, callbackargs)
        own = _own_modules([func, *depfuncs, *args])
        if own:
            import cloudpickle

            with _by_value(own):
                # As bytes: arguments are pickled by name where that can be done.
                args = (cloudpickle.dumps(args, 5),)
                job._future = self._view.submit(self._prepared(func, depfuncs, modules, True), *args)
        elif depfuncs or modules:
            job._future = self._view.submit(self._prepared(func, depfuncs, modules, False), *args)
        else:
            job._future = self._view.submit(func, *args)
        self._unfinished.add(job)
        job._future.add_done_callback(job._ended)
        return job

    def _prepared(self, *key: Any) -> Callable[..., Any]:
        """The function that the engines call. The same one for the same job, so that it is pickled once."""
        try:
            known = self._jobs.get(key)
        except TypeError:  # a method of what has no hash
            return _prepare(*key)
        if known is None:
            if len(self._jobs) >= 64:
                self._jobs.clear()
            known = self._jobs[key] = _prepare(*key)
        return known

    def wait(self, group: Optional[str] = None) -> None:
        """Waits for the jobs of a group, or for all."""
        for job in list(self._unfinished):
            if not group or job.group == group:
                job.wait()

    def get_ncpus(self) -> int:
        """How many local engines take jobs."""
        return self._ncpus

    def set_ncpus(self, ncpus: Union[int, str] = "autodetect") -> None:
        """Sets how many local engines take the jobs that are submitted from now on; starts those that are missing."""
        count = _ncpus(ncpus)
        if count > len(self._local):
            self._local.start(self._client, count - len(self._local))
        self._ncpus = count
        if count < len(self._local):
            # Those that are too many stay, and are given nothing.
            rows = self._client.engines
            spared = sorted(row["id"] for row in rows if _local(row))[count:]
            self._view = self._client.view(targets=[row["uuid"] for row in rows if row["id"] not in spared])
        else:
            self._view = self._client.view()

    def get_active_nodes(self) -> Dict[str, int]:
        """The engines by server: ``{"local": 2, "192.168.1.1:60000": 4}``."""
        nodes = {"local": self._ncpus}
        for row in self._client.engines:
            if not _local(row):
                node = self._node(row["host"])
                nodes[node] = nodes.get(node, 0) + 1
        return nodes

    def get_stats(self) -> Dict[str, _Statistics]:
        """What each server has done."""
        rows = self._client.engines
        names = {row["host"][0]: "local" if _local(row) else self._node(row["host"]) for row in rows}
        stats = {node: _Statistics(ncpus, 0, 0.0) for node, ncpus in self.get_active_nodes().items()}
        for row in self._client.stats()["nodes"]:
            node = names.get(row["node"], row["node"])
            known = stats.setdefault(node, _Statistics(0, 0, 0.0))
            known.njobs += row["jobs"]
            known.time += row["time"]
        return stats

    def _node(self, names: Iterable[str]) -> str:
        """What the program calls a host."""
        names = list(names)
        return next((self._nodes[name] for name in names if name in self._nodes), names[0])

    def print_stats(self) -> None:
        """Prints how many jobs each server has done, and how long they took."""
        stats = {node: stat for node, stat in self.get_stats().items() if stat.njobs}
        total = sum(stat.njobs for stat in stats.values())
        print("Job execution statistics:")
        print(" job count | % of all jobs | job time sum | time per job | job server")
        for node, stat in stats.items():
            print(f"{stat.njobs:10} |{100 * stat.njobs / total:14.2f} |{stat.time:13.4f} |{stat.time / stat.njobs:13.6f} | {node}")
        print(f"Time elapsed since server creation {time.time() - self._created}")
        print(f"{self._client.status()['tasks']['running']} active tasks, {self._ncpus} cores")
        print()

    def destroy(self) -> None:
        """Stops the engines. Jobs that are not done raise :class:`DestroyedServerError`."""
        self._local.stop()


def _ncpus(ncpus: Union[int, str]) -> int:
    if ncpus == "autodetect":
        return len(os.sched_getaffinity(0))
    if not isinstance(ncpus, int):
        raise TypeError("ncpus must have 'int' type")
    if ncpus < 0:
        raise ValueError("ncpus must be an integer > 0")
    return ncpus


def _local(engine: Dict[str, Any]) -> bool:
    return _LOCAL in engine["tags"]


def _prepare(function: Any, needs: Tuple[Any, ...], modules: Tuple[str, ...], packed: bool) -> Callable[..., Any]:
    """The function as a job: first what it refers to is put where it looks for it, if that is not there."""

    # By value, and so without this module: the engines need no ipbroker.
    def job(*args: Any) -> Any:
        for each in (function, *needs):
            parts = vars(each).values() if isinstance(each, type) else [each]
            for part in parts:
                names = getattr(part, "__globals__", None)
                if names is None:
                    continue
                for need in needs:
                    names.setdefault(need.__name__, need)
                for module in modules:
                    if module.startswith(("import ", "from ")):
                        exec(module, names)
                    else:
                        names.setdefault(module.partition(".")[0], __import__(module))
        if packed:
            import pickle

            args = pickle.loads(args[0])
        return function(*args)

    job.__name__ = job.__qualname__ = getattr(function, "__name__", type(function).__name__)
    return job


_lock = threading.RLock()


def _own_modules(values: List[Any]) -> Set[str]:
    """The program's own modules that functions, or objects, come from."""
    kinds = (value if callable(value) and hasattr(value, "__module__") else type(value) for value in values)
    return {name for name in (getattr(kind, "__module__", None) for kind in kinds) if name is not None and _is_own(name)}


@lru_cache(None)
def _is_own(name: str) -> bool:
    """Whether a module is the program's, neither Python's nor an installed one."""
    file = getattr(sys.modules.get(name), "__file__", None)
    if name in ("__main__", "__mp_main__") or name.partition(".")[0] == __name__.partition(".")[0] or not file:
        return False
    places = {"site-packages", "dist-packages", f"python{sys.version_info[0]}.{sys.version_info[1]}"}
    return file.endswith(".py") and not places & set(file.split(os.sep))


@contextmanager
def _by_value(names: Set[str]) -> Iterator[None]:
    """Has cloudpickle send what is of these modules by value."""
    import cloudpickle

    with _lock:
        new = [sys.modules[name] for name in names - cloudpickle.list_registry_pickle_by_value()]
        for module in new:
            cloudpickle.register_pickle_by_value(module)
        try:
            yield
        finally:
            for module in new:
                cloudpickle.unregister_pickle_by_value(module)
