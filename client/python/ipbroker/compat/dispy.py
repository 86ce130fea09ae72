"""dispy: jobs that call one function, or run one program, on a few nodes.

    import ipbroker.compat.dispy as dispy

    cluster = dispy.JobCluster(compute, nodes=["localhost"])
    jobs = [cluster.submit(n) for n in range(5)]
    for job in jobs:
        print(job(), job.ip_addr, job.start_time)
    cluster.stats()

A ``JobCluster`` has a controller of its own, and engines on its nodes: processes of this machine, or over SSH; no dispynode is
started before. A ``SharedJobCluster`` is one of several programs on the cluster of the default profile, which ``ipctl --python``
serves instead of dispyscheduler; nodes come and go there as ``ipengine --python`` does.
"""

from __future__ import annotations

import collections
import inspect
import itertools
import logging
import os
import queue
import shutil
import socket
import sys
import sysconfig
import threading
import time
import traceback
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Optional, Tuple, Union

from .. import _nested, _pickle
from ..client import Client
from ..cluster import Cluster
from ..errors import EngineError, IpbrokerError
from ..futures import Future

RESTARTS = 10
"""How often a job is started again because its node has died, with ``reentrant=True``."""

LOCAL = {"*", "localhost", "127.0.0.1", "::1"}

UNUSED = {
    **dict.fromkeys(("secret", "keyfile", "certfile"), "the cluster has keys of its own; messages are signed, and encrypted between hosts"),
    **dict.fromkeys(("port", "dispy_port", "node_port", "client_port", "scheduler_port"), "hosts are reached over SSH, and the cluster finds its own ports"),
    **dict.fromkeys(("ping_interval", "pulse_interval", "poll_interval"), "the cluster has heartbeats of its own (ipctl --ping)"),
    "ipv4_udp_multicast": "hosts are named, and not searched for",
}
"""Arguments that tell dispy how to find, watch and trust nodes, and why nothing depends on them here."""

REFUSED = {
    "cleanup": "each job has its files in a directory of its own, which is removed after it",
    "cluster_status": "use callback, and status()",
    "dest_path": "each job has its files in a directory of its own, which is its working directory",
    "exclusive": "a shared cluster is for all of its clients; use JobCluster",
    "recover_file": "what a controller knows it keeps by itself: ipctl --restore",
    "setup": "let the function do it when it is first called",
}
"""Arguments by which jobs would do other things, and what to do instead."""


logger: Any = logging.getLogger("dispy")
"""Writes to the standard error; ``loglevel`` is its level, as in ``dispy.logger.DEBUG``."""
for _level in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"):
    setattr(logger, _level, getattr(logging, _level))

Files = Tuple[Tuple[str, int, bytes], ...]
"""Names, modes, contents."""


class DispyJob:
    """A job. Calling it waits for it, and gives its result.

    ``id`` is the caller's to set. When the job has ended ``status`` is ``Finished``, ``Terminated`` (it raised an exception),
    ``Cancelled`` or ``Abandoned`` (its node died), before that ``Created``. ``result`` is what the function returned, or the program's
    exit status; ``stdout``, ``stderr``, ``exception`` (a traceback) are texts; ``submit_time``, ``start_time``, ``end_time`` are
    seconds since 1970; ``ip_addr`` is the node's.
    """

    Created, Running, ProvisionalResult, Cancelled, Terminated, Abandoned, Finished = range(5, 12)

    _ids = itertools.count(1)

    def __init__(self, cluster: "JobCluster", id: Any) -> None:
        self.id = next(self._ids) if id is None else id
        self.status = self.Created
        self.result: Any = None
        self.stdout: Optional[str] = None
        self.stderr: Optional[str] = None
        self.exception: Optional[str] = None
        self.submit_time = time.time()
        self.start_time: Optional[float] = None
        self.end_time: Optional[float] = None
        self.finish = _nested.Event()
        self._cluster = cluster
        self._future: Optional[Future] = None
        self._host: Optional[str] = None

    @property
    def ip_addr(self) -> Optional[str]:
        """The address of the node where it ran."""
        return None if self._host is None else self._cluster._node(self._host).ip_addr

    def __call__(self, clear: bool = False) -> Any:
        """Waits until the job has ended; its result."""
        self.finish.wait()
        if clear:
            self.finish.clear()
        return self.result

    def __repr__(self) -> str:
        return f"<DispyJob {self.id!r} of {self._cluster.name}: status {self.status}>"


class DispyNode:
    """A node: ``ip_addr``, ``name``, ``cpus`` (its engines), and of this cluster's jobs ``jobs_done`` and ``cpu_time`` (s)."""

    def __init__(self, ip_addr: str, name: str) -> None:
        self.ip_addr = ip_addr
        self.name = name
        self.cpus = 0
        self.jobs_done = 0
        self.cpu_time = 0.0

    def __repr__(self) -> str:
        return f"<DispyNode {self.ip_addr} ({self.name}): {self.cpus} cpus>"


class NodeAllocate:
    """A node, and how many of its cpus are used: all by default, all but some if negative."""

    def __init__(self, host: str = "*", port: Optional[int] = None, cpus: int = 0) -> None:
        if port is not None:
            logger.warning("dispy: the port of a node has no use here: %s", UNUSED["port"])
        self.host = host
        self.cpus = cpus


class ClusterStatus(NamedTuple):
    """What :meth:`JobCluster.status` tells."""

    nodes: List[DispyNode]
    jobs_pending: int


Node = Union[str, Tuple[Any, ...], Dict[str, Any], NodeAllocate]


class JobCluster:
    """Nodes for one computation, a function or a program's path.

    ``nodes``: names or addresses, or ``(host, port, cpus)``; this machine by default. ``depends``: files that jobs find in their
    directory, modules, and functions and classes that the computation uses. ``callback`` (or ``job_status``): is called with each job
    that has ended, in a thread of its own. ``reentrant``: a job whose node has died is started again. ``host`` (or ``ip_addr``): the
    address that nodes connect to, ``ext_host`` (or ``ext_ip_addr``): its name there, if it is another one.
    """

    def __init__(
        self,
        computation: Union[str, Callable[..., Any]],
        nodes: Union[None, Node, List[Node]] = None,
        depends: Iterable[Any] = (),
        callback: Optional[Callable[[DispyJob], Any]] = None,
        job_status: Optional[Callable[[DispyJob], Any]] = None,
        reentrant: bool = False,
        loglevel: Optional[int] = None,
        host: Optional[str] = None,
        ip_addr: Optional[str] = None,
        ext_host: Optional[str] = None,
        ext_ip_addr: Optional[str] = None,
        cleanup: bool = True,
        **others: Any,
    ) -> None:
        if loglevel is not None:
            logger.setLevel(loglevel)
        self._ip, self._location = host or ip_addr, ext_host or ext_ip_addr
        self._look_at({**others, "cleanup": cleanup is not True})
        if not (isinstance(computation, str) or callable(computation)):
            raise TypeError(f"a computation is a function, or the path of a program, not {computation!r}")
        self.name = os.path.basename(computation) if isinstance(computation, str) else getattr(computation, "__name__", repr(computation))
        self._needs = computation, list(depends)
        self._call = _caller(*self._needs)
        self._wanted = [_allocation(node) for node in (nodes if isinstance(nodes, list) else [nodes or "*"])] or [NodeAllocate("*")]
        self._retries = RESTARTS if reentrant else 0
        # By what an engine calls its host.
        self._nodes: Dict[str, DispyNode] = {}
        # Jobs and seconds, likewise.
        self._counts: "collections.defaultdict[str, List[Any]]" = collections.defaultdict(lambda: [0, 0.0])
        self._pending: Dict[DispyJob, None] = {}
        self._changed = _nested.Condition()
        self._callback = callback or job_status
        self._ended: "queue.SimpleQueue[Optional[DispyJob]]" = queue.SimpleQueue()
        self.start_time = time.time()
        self.client = self._connect()
        try:
            self.client._link.check_python(self.name)
        except IpbrokerError:
            self._end()
            raise
        self._executor = self.client.executor(**self._options())
        if self._callback is not None:
            threading.Thread(target=self._call_back, args=(self._callback,), name="dispy-callbacks", daemon=True).start()

    def _look_at(self, others: Dict[str, Any]) -> None:
        """Says what is wrong with arguments, or without use."""
        for name, value in others.items():
            if name in UNUSED:
                if value:
                    logger.warning("dispy: %s has no use here: %s", name, UNUSED[name])
            elif name not in REFUSED or value:
                raise TypeError(f"{type(self).__name__} has no {name!r} here: {REFUSED.get(name, 'see docs/coming-from/dispy.md')}")

    def _connect(self) -> Client:
        options = [*([f"--ip={self._ip}"] if self._ip else []), *([f"--location={self._location}"] if self._location else [])]
        here = {*LOCAL, socket.gethostname(), socket.getfqdn()}
        if all(node.host in here for node in self._wanted):
            cores = os.cpu_count() or 1
            return Cluster(max(node.cpus if node.cpus > 0 else max(1, cores + node.cpus) for node in self._wanted), options=options).client()
        hosts = []
        for node in self._wanted:
            if "*" in node.host or node.cpus < 0:
                raise ValueError(f"nodes are named here, with how many cpus are used there: not {node.host!r} with {node.cpus}")
            hosts.append(f"{node.host}:{node.cpus}" if node.cpus else node.host)
        return Cluster(hosts=hosts, options=options).client()

    def _options(self) -> Dict[str, Any]:
        """Those of all calls."""
        return {"retries": self._retries}

    def submit(self, *args: Any, **kwargs: Any) -> DispyJob:
        """A job that calls the function with these arguments, or runs the program with them. ``dispy_job_depends``: more of ``depends``, for it alone."""
        return self._submit(None, self._executor, args, kwargs)

    def submit_job_id(self, job_id: Any, *args: Any, **kwargs: Any) -> DispyJob:
        """The same, with the job's ``id``."""
        return self._submit(job_id, self._executor, args, kwargs)

    def submit_node(self, node: Union[str, DispyNode], *args: Any, **kwargs: Any) -> DispyJob:
        """The same, on this node: a :class:`DispyNode`, or a name or address."""
        host = node.ip_addr if isinstance(node, DispyNode) else node
        return self._submit(None, self.client.executor(**{**self._options(), "host": [host]}), args, kwargs)

    def _submit(self, id: Any, executor: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> DispyJob:
        own = kwargs.pop("dispy_job_depends", None)
        call = _caller(self._needs[0], [*self._needs[1], *own]) if own else self._call
        job = DispyJob(self, id)
        with self._changed:
            self._pending[job] = None
        try:
            job._future = executor.submit(call, *args, **kwargs)
        except BaseException:
            self._done(job)
            raise
        job._future.add_done_callback(lambda future: self._take(job, future))
        return job

    def _take(self, job: DispyJob, future: Any) -> None:
        """Called when a job has ended, by whoever ended it."""
        info = future.info
        job._host = info.host
        job.start_time = info.started.timestamp() if info.started else None
        job.end_time = info.completed.timestamp() if info.completed else time.time()
        if job._host is not None and job.start_time is not None:
            with self._changed:
                counts = self._counts[job._host]
                counts[0] += 1
                counts[1] += job.end_time - job.start_time
        error = None if future.cancelled() else future.exception()
        if future.cancelled():
            job.status = DispyJob.Cancelled
        elif error is not None:
            job.status = DispyJob.Abandoned if isinstance(error, EngineError) else DispyJob.Terminated
            job.exception = "".join(traceback.format_exception(type(error), error, None))
        else:
            job.result, job.stdout, job.stderr, job.exception = future.result()
            job.status = DispyJob.Finished if job.exception is None else DispyJob.Terminated
        job.finish.set()
        if self._callback is not None:
            self._ended.put(job)
        else:
            self._done(job)

    def _call_back(self, callback: Callable[[DispyJob], Any]) -> None:
        """The thread of the callbacks: a slow one, or one that waits for other jobs, keeps nobody from their results."""
        while True:
            job = self._ended.get()
            if job is None:
                return
            try:
                callback(job)
            except Exception:
                sys.excepthook(*sys.exc_info())
            self._done(job)

    def _done(self, job: DispyJob) -> None:
        """A job has ended, and its callback, too."""
        with self._changed:
            del self._pending[job]
            self._changed.notify_all()

    def cancel(self, job: DispyJob) -> int:
        """Cancels a job, one that runs, too. 0 if it was, -1 if it had ended."""
        return 0 if job._future is not None and not job._future.done() and job._future.cancel() else -1

    def wait(self, timeout: Optional[float] = None) -> bool:
        """Waits for the jobs and their callbacks, at most ``timeout`` s; whether all have ended."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._pending, timeout)

    __call__ = wait

    def status(self) -> ClusterStatus:
        """The nodes, and how many jobs have not ended."""
        self._look()
        with self._changed:
            for host, (jobs, seconds) in self._counts.items():
                node = self._nodes.setdefault(host, DispyNode(host, host))
                node.jobs_done, node.cpu_time = jobs, seconds
            return ClusterStatus(sorted(self._nodes.values(), key=lambda node: node.ip_addr), len(self._pending))

    def _look(self) -> None:
        """Sees which nodes there are."""
        if self.client.closed:
            return
        cpus: "collections.Counter[str]" = collections.Counter()
        for engine in self.client.engines:
            names = engine["host"]
            asked = [node.host for node in self._wanted if node.host in names]
            if asked or self._everywhere():
                self._nodes.setdefault(names[0], DispyNode(_address(names), asked[0] if asked else names[0]))
                cpus[names[0]] += 1
        for host, node in self._nodes.items():
            node.cpus = cpus[host]

    def _everywhere(self) -> bool:
        return any(node.host == "*" for node in self._wanted)

    def _node(self, host: str) -> DispyNode:
        if host not in self._nodes:
            self._look()
        return self._nodes.setdefault(host, DispyNode(host, host))

    def print_status(self, wall_time: Optional[float] = None) -> None:
        """Prints the table of the nodes."""
        status = self.status()
        heading = f" {'Node':>30} | {'CPUs':>5} | {'Jobs':>7} | {'Sec/Job':>10} | {'Node Time Sec':>13}"
        print(f"\n{heading}\n{'-' * len(heading)}")
        for node in status.nodes:
            each = node.cpu_time / node.jobs_done if node.jobs_done else 0.0
            name = f"{node.ip_addr} ({node.name})"
            print(f" {name:<30.30} | {node.cpus:>5} | {node.jobs_done:>7} | {each:>10.3f} | {node.cpu_time:>13.3f}")
        print()
        if status.jobs_pending:
            print(f"Jobs pending: {status.jobs_pending}")
        total = sum(node.cpu_time for node in status.nodes)
        wall = wall_time or time.time() - self.start_time
        print(f"Total job time: {total:.3f} sec, wall time: {wall:.3f} sec, speedup: {total / wall:.3f}\n")

    stats = print_status

    def close(self, timeout: Optional[float] = None, terminate: bool = False) -> bool:
        """Ends the cluster when its jobs have ended, or at once (``terminate``). False if they have not after ``timeout`` s."""
        if self.client.closed:
            return True
        if not terminate and not self.wait(timeout):
            return False
        for job in list(self._pending):
            self.cancel(job)
        self.wait()
        self._look()
        self._ended.put(None)
        self._end()
        return True

    shutdown = close

    def _end(self) -> None:
        # The client's own cluster: it was started for it.
        self.client._cluster.close()

    def __enter__(self) -> "JobCluster":
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        self.close(terminate=kind is not None)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.name}: {len(self._pending)} jobs pending>"


class SharedJobCluster(JobCluster):
    """The same on a cluster that runs, and that others use, too: that of the default profile here, or on ``scheduler_node`` over SSH.

    ``nodes`` are those of its hosts that are used, by default all.
    """

    def __init__(self, computation: Union[str, Callable[..., Any]], *args: Any, scheduler_node: Optional[str] = None, scheduler_host: Optional[str] = None, **kwargs: Any) -> None:
        host = scheduler_node or scheduler_host
        self._scheduler = None if host in {None, *LOCAL, socket.gethostname(), socket.getfqdn()} else host
        super().__init__(computation, *args, **kwargs)

    def _connect(self) -> Client:
        if self._ip or self._location:
            logger.warning("dispy: host, ip_addr, ext_host and ext_ip_addr have no use here: nobody connects to this program")
        return Client(ssh=self._scheduler)

    def _options(self) -> Dict[str, Any]:
        hosts = {} if self._everywhere() else {"host": [node.host for node in self._wanted]}
        return {**super()._options(), **hosts}

    def _end(self) -> None:
        self.client.close()


def _allocation(node: Node) -> NodeAllocate:
    if isinstance(node, NodeAllocate):
        return node
    if isinstance(node, str):
        return NodeAllocate(node)
    if isinstance(node, dict):
        return NodeAllocate(**node)
    if isinstance(node, tuple) and 1 <= len(node) <= 3 and isinstance(node[0], str):
        return NodeAllocate(*node)
    raise TypeError(f"a node is a name, or (host, port, cpus), not {node!r}")


def _address(names: List[str]) -> str:
    """Of the names of a host, its address."""
    for name in names:
        if name.count(".") == 3 and name.replace(".", "").isdigit():
            return name
    return names[0]


def _files(computation: Any, depends: Iterable[Any]) -> Files:
    """The program, and the files and modules that it needs, as they are now."""
    paths = []
    if isinstance(computation, str):
        paths.append(computation if os.path.isfile(computation) else shutil.which(computation) or computation)
    for thing in depends:
        if isinstance(thing, str):
            paths.append(thing)
        elif inspect.ismodule(thing):
            paths.append(inspect.getsourcefile(thing) or thing.__name__)
    files = []
    for path in paths:
        try:
            with open(path, "rb") as file:
                files.append((os.path.basename(path), os.fstat(file.fileno()).st_mode & 0o777, file.read()))
        except OSError as error:
            raise ValueError(f"{path} cannot be sent to the nodes: {error.strerror}") from None
    return tuple(files)


def _pickled(function: Callable[..., Any], depends: Iterable[Any]) -> bytes:
    """A function by value, with the functions and classes that it may look for by their names, and so what these use of the modules
    where they are: the nodes need not have these."""
    import cloudpickle

    installed = tuple(os.path.realpath(path) + os.sep for path in sysconfig.get_paths().values())
    known = cloudpickle.list_registry_pickle_by_value()
    added = []
    for thing in (function, *depends):
        module = None if isinstance(thing, str) or inspect.ismodule(thing) else inspect.getmodule(thing)
        path = getattr(module, "__file__", None)
        if module is not None and path and not os.path.realpath(path).startswith(installed) and module.__name__ not in {*known, "__main__"}:
            cloudpickle.register_pickle_by_value(module)
            known.add(module.__name__)
            added.append(module)
    named = {thing.__name__: thing for thing in depends if inspect.isfunction(thing) or inspect.isclass(thing)}
    try:
        return _pickle._by_value((function, named), lambda: f"the function {function.__name__!r}")
    finally:
        for module in added:
            cloudpickle.unregister_pickle_by_value(module)


def _caller(computation: Any, depends: Iterable[Any]) -> Callable[..., Any]:
    """What the engines call. It is no function of this module, but one that goes by value: the nodes need no ipbroker."""
    files = _files(computation, depends)
    program = os.path.basename(computation) if isinstance(computation, str) else None
    code = None if program else _pickled(computation, depends)

    def call(*args: Any, **kwargs: Any) -> Tuple[Any, str, str, Optional[str]]:
        import contextlib
        import io
        import os
        import pickle
        import socket
        import subprocess
        import sys
        import tempfile
        import traceback

        with contextlib.ExitStack() as stack:
            if files:
                place = stack.enter_context(tempfile.TemporaryDirectory(prefix="dispy-"))
                for name, mode, content in files:
                    with open(os.path.join(place, name), "wb") as file:
                        file.write(content)
                    os.chmod(file.name, mode)
                stack.callback(os.chdir, os.getcwd())
                os.chdir(place)
            if program:
                command = [*([sys.executable] if program.endswith(".py") else []), os.path.join(place, program), *map(str, args)]
                done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")
                return done.returncode, done.stdout, done.stderr, None
            if files:
                sys.path.insert(0, place)
                stack.callback(sys.path.remove, place)
            out, err = io.StringIO(), io.StringIO()
            stack.enter_context(contextlib.redirect_stdout(out))
            stack.enter_context(contextlib.redirect_stderr(err))
            modules = set(sys.modules)
            result = exception = None
            try:
                if not hasattr(call, "compute"):
                    call.compute, named = pickle.loads(code)  # type: ignore[attr-defined, arg-type]
                    getattr(call.compute, "__globals__", {}).update(named, dispy_node_name=socket.gethostname())  # type: ignore[attr-defined]
                result = call.compute(*args, **kwargs)  # type: ignore[attr-defined]
            except Exception as error:
                frames = error.__traceback__ and error.__traceback__.tb_next
                exception = "".join(traceback.format_exception(type(error), error, frames))
            if files:
                # A file of this name that another cluster brings is another module.
                for name in set(sys.modules) - modules:
                    if (getattr(sys.modules[name], "__file__", None) or "").startswith(place):
                        del sys.modules[name]
        return result, out.getvalue(), err.getvalue(), exception

    # What is said of a call names the program's function.
    call.__name__ = call.__qualname__ = str(program or getattr(computation, "__name__", repr(computation)))
    return call
