"""The client: a connection to a cluster, and the thread that fetches its results."""

from __future__ import annotations

import atexit
import itertools
import json
import os
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterable, List, Mapping, Optional, Set, Tuple, Union

from . import _native
from ._pickle import PYTHON, dump_arguments
from .errors import ClosedError, ForkError, IpbrokerError, PicklingError
from .futures import Future
from .output import Output

if TYPE_CHECKING:
    from .executor import Executor
    from .jobs import Jobs
    from .report import Report
    from .view import View

OK, ERROR, MEMBERS, MEMBERS_ERROR, JOBS = range(5)
TICK = 0.2
"""Seconds between looks for signals where something native is waited for."""

Ids = Union[str, Future, Iterable[Union[str, Future]]]


class Link:
    """A connection, what is awaited on it, and the thread that completes that."""

    def __init__(self, **where: Any) -> None:
        self.native = _native.Client(**where)
        self.pending: Dict[int, Any] = {}
        self.tags = itertools.count()
        self.pid = os.getpid()
        self.forked = False
        self.closed = False
        self._same_python = False
        self._thread = _Results(self.native, self.pending)
        self._thread.start()
        self.native.listen()

    def submit(self, view: "View", function: Any, args: Any, kwargs: Any, owner: Any = None) -> Future:
        """Sends a call. The view's client is kept until it has ended."""
        data, outside, python = dump_arguments(args, kwargs)
        call, name = view._call(function, self, python)
        future = Future(self, name, time.time())
        future._client = view.client
        future._owner = owner
        tag = next(self.tags)
        future._tag = tag
        self.pending[tag] = future
        if owner is not None:
            owner.add(future)
        try:
            future.id = self.native.submit(call, data, outside, tag)
        except BaseException:
            self.forget(future)
            raise
        return future

    def submit_array(self, call: Any, arguments: List[bytes], target: Any) -> str:
        """Sends an array; ``target.deliver(lo, hi, metadata, values, failures, duration)`` takes what comes."""
        tag = next(self.tags)
        self.pending[tag] = target
        try:
            return str(self.native.submit_array(call, arguments, tag))
        except BaseException:
            del self.pending[tag]
            raise

    def check_python(self, name: str) -> None:
        """For a call in which something goes by value. :class:`PicklingError` if engines are there, but none with this Python."""
        if self._same_python:
            return
        engines = json.loads(self.native.engines())
        there = {tag[len("python") :] for engine in engines for tag in engine["tags"] if tag.startswith("python3.")}
        self._same_python = PYTHON in there
        if there and not self._same_python:
            raise PicklingError(
                f"a call of {name} cannot be sent: what goes by value in it is for Python {PYTHON} only, and the engines run "
                f"{', '.join(sorted(there))}; what can be imported there goes to any version"
            )

    def check_fork(self, what: str) -> None:
        """:class:`ForkError` in a forked process: what was submitted before comes back to its parent only."""
        if self.forked:
            raise ForkError(f"{what} was submitted by process {self.pid}, and its result goes there")

    def check_wait(self, what: str) -> None:
        """For whoever is about to wait. :class:`RuntimeError` in the thread that fetches results: it would wait for itself."""
        self.check_fork(what)
        if threading.current_thread() is self._thread:
            raise RuntimeError(f"{what} has not ended, and a callback cannot wait for it: no result comes while a callback runs; wait in a thread, or give it a callback of its own")

    def forget(self, future: Future) -> None:
        """Nobody waits for the future any more."""
        self.pending.pop(future._tag, None)
        _forget(future)

    def abort_soon(self, ids: List[str]) -> None:
        """Has calls ended, and does not wait for it."""
        if not (self.closed or self.forked):
            try:
                self.native.abort(ids, True, False)
            except IpbrokerError:
                pass  # closed meanwhile

    def close(self) -> None:
        """Ends the connection; calls that are not done fail."""
        if self.closed or self.forked:
            return
        self.closed = True
        self.native.close()
        if self._thread is not threading.current_thread():
            self._thread.join(5)


class _Results(threading.Thread):
    """The thread that completes futures as results come. It knows no client, so that one can be collected."""

    def __init__(self, native: Any, pending: Dict[int, Any]) -> None:
        super().__init__(name="ipbroker-results", daemon=True)
        self._native, self._pending = native, pending

    # Its own: what calls print is then shown below the cell that runs, not below the one that made the client (ipykernel 6).
    def run(self) -> None:
        _running.add(self)
        try:
            self._serve()
        finally:
            _running.discard(self)

    def _serve(self) -> None:
        output = Output()
        while True:
            arrived = self._native.wait_results()
            if arrived is None:
                return
            deliveries, printed, dropped = arrived
            for piece in printed:
                output.piece(*piece)
            if dropped:
                output.write("stderr", f"[ipbroker: {dropped} bytes that calls printed were dropped: more than can be shown]\n")
            for delivery in deliveries:
                try:
                    _deliver(self._pending, output, *delivery)
                except BaseException:
                    # A defect of ours, or of a callback (sys.exit(), too): the other results are wanted all the same.
                    sys.excepthook(*sys.exc_info())
            # What is waited for next should not keep these alive.
            arrived = deliveries = delivery = None


def _deliver(pending: Dict[int, Any], output: "Output", kind: int, tag: Union[int, List[int]], lo: int, hi: int, metadata: Optional[bytes], value: Any, more: Any) -> None:
    if isinstance(tag, list):
        # Calls that travelled together.
        failures, content, printed = more if kind == MEMBERS else (None, None, ())
        for id, stdout, stderr in printed:
            output.rest(id, stdout, stderr)
        values = value if isinstance(value, list) else [None if kind == MEMBERS_ERROR else value] * len(tag)
        for index, (one, data) in enumerate(zip(tag, values), lo):
            future = pending.pop(one, None)
            if future is None:
                continue  # cancelled
            if data is None:
                future._fail(metadata, failures[index] if failures else value, content, index)
            else:
                future._succeed(metadata, data, None, content, index)
            _forget(future)
        return
    target = pending.get(tag)
    if target is None:
        return  # cancelled
    if isinstance(target, Future):
        # It may be cancelled just now.
        pending.pop(tag, None)
        if kind == OK:
            outside, content, printed = more or (None, None, None)
            if printed is not None:
                # The reply says whose it is: the future may not have heard its id yet.
                output.rest(*printed)
            target._succeed(metadata, value, outside, content)
        elif kind == MEMBERS:
            target._fail(metadata, ("BadReply", "the reply is that of an array", (), None, False, None))
        else:
            target._fail(metadata, value)
        _forget(target)
    else:
        if kind == JOBS:
            done = target.deliver(value)
        elif kind == MEMBERS:
            failures, duration, printed = more
            for piece in printed:
                output.rest(*piece)
            done = target.deliver(lo, hi, metadata, value, failures, duration)
        else:
            done = target.deliver(lo, hi, metadata, None, value, 0.0)
        if done:
            pending.pop(tag, None)


def _forget(future: Future) -> None:
    future._client = None
    owner = future._owner
    if owner is not None:
        owner.discard(future)


_running: Set[threading.Thread] = set()
_links: "weakref.WeakSet[Link]" = weakref.WeakSet()
_forked_links: List[Link] = []


def _after_fork() -> None:
    """In a child: the connections are the parent's. They are kept, because to drop one would be to close it."""
    for link in list(_links):
        link.forked = True
        _forked_links.append(link)
    _links.clear()
    _running.clear()
    # Another thread of the parent may have held it.
    Future._making = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)


def _at_exit() -> None:
    """Python ends threads in the middle of a native call, which that does not survive: the process would abort. The thread of a client
    that is collected with its last result closes it itself, and nobody else waits for that."""
    for link in list(_links):
        link.close()
    for thread in list(_running):
        thread.join(5)


atexit.register(_at_exit)


def _close(links: List[Link]) -> None:
    for link in links:
        link.close()


class Client:
    """A connection to a cluster.

    Without arguments: the default profile's. ``profile``, ``profile_dir``, ``cluster_id`` name another one, ``file`` is a
    connection file, ``ssh`` a server through which the controller is reached; ``timeout`` (s) is for its first answer, and
    a controller that is not heard of is waited for ``grace`` s before calls fail with :class:`ControllerLost`.
    A client may be used from any thread. In a forked process it connects anew at its first use there.
    """

    def __init__(
        self,
        profile: Optional[str] = None,
        *,
        profile_dir: "Optional[Union[str, os.PathLike[str]]]" = None,
        cluster_id: Optional[str] = None,
        file: "Optional[Union[str, os.PathLike[str]]]" = None,
        ssh: Optional[str] = None,
        timeout: float = 10.0,
        grace: float = 300.0,
    ) -> None:
        if profile is not None and profile_dir is not None:
            raise ValueError("profile or profile_dir, not both")
        self._where: Dict[str, Any] = {
            "profile": profile,
            "profile_dir": None if profile_dir is None else os.fspath(profile_dir),
            "cluster_id": cluster_id,
            "file": None if file is None else os.fspath(file),
            "ssh": ssh,
            "timeout": timeout,
            "grace": grace,
        }
        self._lock = threading.Lock()
        # A cluster that was made for this client lives as long.
        self._cluster: Any = None
        self._links: List[Link] = []
        # Runs when the client is collected, and at the interpreter's exit.
        self._finalizer = weakref.finalize(self, _close, self._links)
        self._connect()

    def _connect(self) -> Link:
        link = Link(**self._where)
        _links.add(link)
        self._links[:] = [link]
        return link

    @property
    def _link(self) -> Link:
        link = self._links[0]
        if link.forked:
            # The lock may be one that the parent held.
            if link.pid != os.getpid():
                self._lock = threading.Lock()
            with self._lock:
                link = self._links[0]
                if link.forked:
                    link = self._connect()
        return link

    # Calls

    def executor(self, **options: Any) -> "Executor":
        """A :class:`concurrent.futures.Executor` on the cluster; the options are those of :meth:`view`."""
        from .executor import Executor

        return Executor(self.view(**options))

    def view(self, **options: Any) -> "View":
        """Calls with options: ``retries``, ``retry_delay`` (s, doubled with each), ``max_crashes`` (losses of its engine, apart from ``retries``), ``timeout`` (s that they may wait), ``after``, ``follow`` (futures or ids), ``any`` (one of them is enough; or alternatives of what it needs: [{"gpus": 1}, {"cpus": 16}]),
        ``on`` ("success", "failure", "always"), ``host``, ``tags``, ``prefer``, ``prefer_wait``, ``priority``, ``require``, ``cpus``, ``gpus``, ``memory``, ``resources``, ``nodes`` (whole hosts), ``limit`` ({"time": s, "memory": bytes}), ``targets``."""
        from .view import View

        return View(self, options)

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """Calls a function wherever there is room."""
        return self.view().submit(function, *args, **kwargs)

    def run(self, jobs: "Iterable[Mapping[str, Any]]", **options: Any) -> "Jobs":
        """Runs shell commands: the lines of ``ipclient run``, as dicts. Returns at once."""
        from .jobs import run

        return run(self, jobs, options)

    # Questions

    @property
    def engines(self) -> "List[Dict[str, Any]]":
        """The engines: a list of dicts, readable in a notebook."""
        from .html import Rows

        return Rows("engines", json.loads(self._link.native.engines()))

    def wait_for_engines(self, n: int = 1, timeout: Optional[float] = None) -> int:
        """Waits until ``n`` engines are there, and tells how many there are. :class:`TimeoutError` after ``timeout`` s."""
        if n < 0:
            raise ValueError("n is at least 0")
        native, begin = self._link.native, time.monotonic()
        while True:
            left = TICK if timeout is None else min(TICK, begin + timeout - time.monotonic())
            count = int(native.wait_for_engines(n, max(left, 0.0)))
            if count >= n:
                return count
            if left <= 0:
                raise TimeoutError(f"{count} of {n} engines are there after {timeout} s")

    def status(self) -> Dict[str, Any]:
        """How the cluster is."""
        return dict(json.loads(self._link.native.status()))

    def stats(self) -> Dict[str, Any]:
        """Jobs and run times by host."""
        return dict(json.loads(self._link.native.stats()))

    def explain(self, id: Union[str, Future]) -> str:
        """Why a task waits, or what became of it, in words."""
        return str(json.loads(self._link.native.explain(_ids(id)[0]))["text"])

    def history(self) -> List[str]:
        """Ids of all tasks that the controller's store knows, oldest first."""
        return list(json.loads(self._link.native.history()))

    def records(self, ids: Ids) -> Dict[str, Dict[str, Any]]:
        """What the store knows of tasks, by id."""
        return dict(json.loads(self._link.native.records(_ids(ids))))

    def report(self, ids: Optional[Ids] = None, *, since: Optional[str] = None) -> "Report":
        """How tasks went, as ``ipclient report`` tells it: of these ids, or of all ``since`` a while (``"1h"``) or a date, or of all
        that the store knows. A notebook shows it, ``.save(path)`` writes it."""
        from .report import report

        if ids is not None and since is not None:
            raise ValueError("ids or since, not both")
        wanted = [] if ids is None else _ids(ids)
        if ids is not None and not wanted:
            raise ValueError("no ids: without any, the report is of all tasks")
        return report(self._where, self.connection_file, wanted, since)

    def abort(self, ids: Optional[Ids] = None, *, kill: bool = True) -> Dict[str, Any]:
        """Ends tasks (default: all of this client's): waiting ones at once, running ones too unless ``kill`` is false."""
        native = self._link.native
        if ids is None:
            return dict(json.loads(native.abort_session()))
        return dict(json.loads(native.abort(_ids(ids), kill)))

    def notices(self) -> List[str]:
        """What happened to the controller since this was last asked, in words."""
        return list(self._link.native.notices())

    @property
    def session(self) -> str:
        """Part of the ids of all of this client's tasks."""
        return str(self._link.native.session)

    @property
    def connection_file(self) -> str:
        """The connection file that led here."""
        return os.fspath(self._link.native.connection_file)

    def shutdown(self) -> None:
        """Ends the controller, and the engines that it started."""
        self._link.native.shutdown()

    def close(self) -> None:
        """Closes the connection; calls that are not done fail with :class:`ClosedError`."""
        self._finalizer()

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self._links[0].closed

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        link = self._links[0]
        if link.closed:
            return "<ipbroker.Client closed>"
        if link.forked:
            return "<ipbroker.Client of the parent process>"
        return f"<ipbroker.Client {link.native.connection_file}: {link.native.engine_count()} engines>"

    def _repr_html_(self) -> str:
        from .html import client

        return client(self)

    def __reduce__(self) -> Any:
        raise TypeError("a client cannot be sent to another process: in a call, ipbroker.current_client() is the cluster it runs on")


def _ids(ids: Ids) -> List[str]:
    if isinstance(ids, str):
        return [ids]
    if isinstance(ids, Future):
        return [ids.id]
    try:
        return [item if isinstance(item, str) else item.id for item in ids]
    except (AttributeError, TypeError):
        raise TypeError(f"a future of ipbroker or an id is needed, or several of them, not {ids!r}") from None


_current: Dict[str, Client] = {}
_current_lock = threading.Lock()


def current_client() -> Client:
    """Inside of a call: the cluster that it runs on. Its calls may submit calls and wait for them."""
    file = os.environ.get("IPBROKER_CONNECTION")
    if not file:
        raise IpbrokerError("current_client() is for calls that run on an engine: here is none (IPBROKER_CONNECTION is not set)")
    with _current_lock:
        client = _current.get(file)
        if client is None or client.closed:
            client = _current[file] = Client(file=file)
        return client
