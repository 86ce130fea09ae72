"""A cluster that lives as long as a ``with`` block, or as this process."""

from __future__ import annotations

import numbers
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import weakref
from typing import Any, Dict, Iterable, List, Optional, Sequence, Union

from .client import TICK, Client
from .errors import ConnectionError, IpbrokerError

_DEPLOYED = re.compile(r"Deployed (\d+) engine\(s\) over \d+ host\(s\)\. Distribution:\n(?:   .*\n)*?   \S+: +failed\n")
"""What ipctl says when it has begun on all hosts, and some could not be had."""

_ABOVE = "; what it said is above"
"""What ipctl's last words about engines end with."""

STOP = 15.0
"""Seconds that the controller has to end, before it is killed."""

GRACE = 30.0
"""Seconds that calls wait for a controller which is not heard of. Nobody starts one again in a directory of its own."""

# The shell outlives this process and removes the directory, even if both are killed; ipctl ends at the end of its
# standard input, which is this process's to hold.
_SCRIPT = 'dir=$1; shift; "$@"; status=$?; rm -rf -- "$dir"; exit $status'


class Cluster:
    """Starts ``ipctl`` and engines, waits for them, and stops them at the end of its ``with`` block (or of the process).

    ``n``: engines in all, by default one a core. ``hosts``: where, over SSH (``["a:4", "b"]``); ``tunnel``: they reach the
    controller through that connection. ``engines``: a batch system that starts them (``"slurm"``). ``profile``: a profile's
    name; without one the cluster has a directory of its own, which is removed with it. ``python``: the engines'
    interpreter, by default this one (on other hosts: their ``python3``). ``options``: more of ``ipctl``'s.
    ``timeout``: seconds that it may take to start.
    """

    def __init__(
        self,
        n: Optional[int] = None,
        *,
        hosts: Optional[Sequence[str]] = None,
        tunnel: bool = False,
        engines: Optional[str] = None,
        profile: Optional[str] = None,
        python: Optional[str] = None,
        options: Sequence[str] = (),
        timeout: float = 60.0,
    ) -> None:
        if isinstance(hosts, str):
            hosts = [hosts]
        if hosts is not None:
            hosts = list(hosts)
            if not all(isinstance(host, str) and host.strip() for host in hosts):
                # ipctl would wait for engines of none.
                raise ValueError(f"hosts is a list of names like ['a:4', 'b'], not {hosts!r}")
        if isinstance(options, str):
            raise TypeError("options is a list of strings")
        if n is not None and not isinstance(n, numbers.Integral):
            raise TypeError(f"n is how many engines, not {n!r}" + (f"; hosts={n!r} says where" if isinstance(n, (list, tuple)) else ""))
        if n is not None and n < 0:
            raise ValueError("n is at least 0")
        elsewhere = bool(hosts or engines)
        if python is not None and not elsewhere and shutil.which(python) is None:
            raise IpbrokerError(f"python={python!r}: there is no such program here")
        if n is None and not elsewhere:
            n = os.cpu_count() or 1
        self.profile = profile
        self.n = n
        self._dir = None if profile is not None else tempfile.mkdtemp(prefix="ipbroker-")
        arguments = [program("ipctl")]
        if n is not None:
            arguments.append(f"-n={n}")
        if hosts:
            arguments += ["--hosts", *hosts]
        if tunnel:
            arguments.append("--tunnel")
        if engines:
            arguments.append(f"--engines={engines}")
        arguments.append(f"--python={python or ('python3' if elsewhere else sys.executable)}")
        where: Dict[str, Any] = {"profile": profile} if self._dir is None else {"profile_dir": self._dir, "cluster_id": "", "grace": GRACE}
        if self._dir is None:
            arguments.append(f"--profile={profile}")
        else:
            arguments += [f"--profile-dir={self._dir}", "--cluster-id="]
        arguments.append("--exit-with-parent")
        arguments += options
        self._log = tempfile.TemporaryFile()
        self._said = ""
        if self._dir is not None:
            arguments = ["/bin/sh", "-c", _SCRIPT, "ipbroker-cluster", self._dir, *arguments]
        try:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._log,
                env=_environment(),
                start_new_session=True,  # Ctrl-C is for this process, which decides when the cluster ends
            )
        except OSError as error:
            _remove(self._dir)
            raise IpbrokerError(f"cannot start {arguments[0]}: {error}") from None
        self._clients: "weakref.WeakSet[Client]" = weakref.WeakSet()
        self._finalizer = weakref.finalize(self, _stop, self._process, self._clients, self._dir, os.getpid())
        self._lock = threading.Lock()
        self._spare: Optional[Client] = None
        self._where = where
        try:
            self._start(time.monotonic() + timeout, timeout, 1 if n is None and elsewhere else n or 0)
        except BaseException:
            self.close()
            raise

    def _start(self, deadline: float, timeout: float, count: int) -> None:
        """Waits for the controller, then for its engines."""
        pause = 0.002
        while True:
            try:
                client = Client(**self._where)
                break
            except ConnectionError as error:
                self._alive()
                if time.monotonic() > deadline:
                    raise TimeoutError(f"the controller is not up after {timeout} s: {self._last_words() or error}") from None
            time.sleep(pause)
            pause = min(pause * 1.2, 0.1)
        self._spare = client
        self._clients.add(client)
        while client._link.native.wait_for_engines(count, TICK) < count:
            self._alive()
            there = client._link.native.engine_count()
            if there < count and self._hosts_failed(there):
                raise IpbrokerError(f"{there} of {count} engines are there, and no others will come: {self._why_hosts_failed()}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"{there} of {count} engines are there after {timeout} s: {self._last_words()}")

    def _alive(self) -> None:
        if self._process.poll() is not None:
            raise IpbrokerError(f"ipctl has ended: {self._last_words() or 'it said nothing'}")

    def _last_words(self) -> str:
        lines = [line.strip() for line in self.log.splitlines() if line.strip()]
        if lines and lines[-1].endswith(_ABOVE):
            said = [line for line in lines if line.startswith("ipengine: ")]
            return ": ".join([lines[-1][: -len(_ABOVE)], *said[-1:]])
        wrong = [line for line in lines if "error" in line.lower()]
        return (wrong or lines[-1:] or [""])[0]

    def _hosts_failed(self, there: int) -> bool:
        """Whether ipctl has given up a host, and all engines of the others are there."""
        deployed = _DEPLOYED.search(self.log)
        return deployed is not None and there >= int(deployed[1])

    def _why_hosts_failed(self) -> str:
        """What ipctl has said of the hosts that failed."""
        log = self.log
        failed = re.findall(r"^   (\S+): +failed$", log, re.MULTILINE)
        said = [line.split(" WARN ", 1)[-1] for line in log.splitlines() if any(f" WARN {host}: " in line for host in failed)]
        return "; ".join(said) or ", ".join(f"{host}: failed" for host in failed)

    def client(self) -> Client:
        """A client of this cluster."""
        with self._lock:
            client, self._spare = self._spare, None
            if client is None or client.closed:
                if not self._finalizer.alive:
                    raise IpbrokerError("the cluster is stopped")
                client = Client(**self._where)
                self._clients.add(client)
            client._cluster = self
            return client

    @property
    def running(self) -> bool:
        """Whether its controller runs."""
        return self._finalizer.alive and self._process.poll() is None

    @property
    def log(self) -> str:
        """What the controller and the engines have said."""
        if self._log.closed:
            return self._said
        # The place in the file is also the one at which ipctl writes: it is left alone.
        file = self._log.fileno()
        return os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace")

    def close(self) -> None:
        """Stops the engines and the controller; calls that are not done fail."""
        self._finalizer()
        if not self._log.closed:
            self._said = self.log
            self._log.close()

    stop = close

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError("a cluster cannot be sent to another process: in a call, ipbroker.current_client() is the cluster it runs on")

    def __repr__(self) -> str:
        state = "running" if self.running else "stopped"
        name = f"profile {self.profile}" if self._dir is None else self._dir
        return f"<ipbroker.Cluster {name}: {state}, ipctl is process {self._process.pid}>"

    def _repr_html_(self) -> str:
        from .html import cluster

        return cluster(self)


def program(name: str) -> str:
    """The path of one of the wheel's programs; else the one on the PATH."""
    places = [sysconfig.get_path("scripts"), os.path.dirname(sys.executable)]
    user = getattr(sysconfig, "get_preferred_scheme", None)
    if user is not None:
        places.append(sysconfig.get_path("scripts", user("user")))
    for place in places:
        path = os.path.join(place, name)
        if os.access(path, os.X_OK):
            return path
    found = shutil.which(name)
    if found is None:
        raise IpbrokerError(f"there is no {name} in {places[0]}, nor on the PATH: is the package installed as a whole?")
    return found


def _environment() -> Dict[str, str]:
    """The engines find the modules that this process finds, as with :mod:`multiprocessing`."""
    environment = {key: value for key, value in os.environ.items() if key not in ("IPP_CONNECTION_INFO", "IPP_CLUSTER_ID", "IPP_PROFILE_DIR")}
    usual = {os.path.realpath(path) for key, path in sysconfig.get_paths().items() if key in ("stdlib", "platstdlib", "purelib", "platlib")}
    usual.add(os.path.realpath(os.path.join(sysconfig.get_path("platstdlib"), "lib-dynload")))
    ours = [os.path.abspath(path) for path in sys.path if os.path.realpath(path) not in usual and os.path.isdir(path or ".")]
    if ours:
        environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([*ours, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]))
    return environment


def _remove(directory: Optional[str]) -> None:
    if directory is not None:
        shutil.rmtree(directory, ignore_errors=True)


def _stop(process: "subprocess.Popen[bytes]", clients: Iterable[Client], directory: Optional[str], pid: int) -> None:
    if os.getpid() != pid:
        return  # a forked child: the cluster is its parent's
    for client in list(clients):
        client.close()
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(STOP)
    except subprocess.TimeoutExpired:
        pass
    finally:
        # Ctrl-C amid the wait, too.
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        _remove(directory)
