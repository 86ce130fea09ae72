"""exec_proxy: files and commands on another machine, over SSH, with methods named as in :mod:`os`.

    import ipbroker.compat.exec_proxy as exec_proxy

    ep = exec_proxy.Exec_proxy("user@remote_host")
    print(ep.listdir("./"))

The other machine needs Python 3, and nothing else: what runs there is sent. What goes wrong is not raised but kept: see
:meth:`Exec_proxy.is_ok`. For many machines at a time there is ``ipclient fs``.
"""

from __future__ import annotations

import base64
import json
import os
import shlex
import subprocess
import tempfile
import threading
from typing import Any, List, Optional, Tuple, Union

from ..errors import ConnectionError, IpbrokerError, RemoteError

connection_program = "ssh -x"
"""What leads to a host: it is called with the host and a command."""

remote_program: Optional[str] = None
"""There, the path of remote.py on the other machine. Programs set it; here it is not needed, because what runs there is sent."""

Path = Union[str, "os.PathLike[str]"]

CHUNK = 1 << 22
"""Bytes of a file that go at a time."""

READY = b"exec_proxy is ready\n"

# Requests and answers are a line of JSON, `[what, size]`, and `size` bytes of data.
_REMOTE = """
import json, os, subprocess, sys, tempfile
READY = %r

def read(data, path, at, size):
    with open(path, "rb") as file:
        file.seek(at)
        return os.fstat(file.fileno()).st_mode & 0o777, file.read(size)

def write(data, path, how):
    with open(path, how) as file:
        file.write(data)

def run(data, command):
    done = subprocess.run(command, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return (done.returncode, done.stderr.decode(errors="replace")), done.stdout

OWN = {"read": read, "write": write, "run": run}
PATH = ("isdir", "isfile", "exists")

def answer(name, arguments, data):
    if name in OWN:
        return OWN[name](data, *arguments) or (None, b"")
    if name == "newdir":
        return tempfile.mkdtemp(prefix="exec_proxy-"), b""
    value = getattr(os.path if name in PATH else os, name)(*arguments)
    return list(value) if name == "stat" else value, b""

source, sink = sys.stdin.buffer, sys.stdout.buffer
sink.write(READY)
sink.flush()
while True:
    line = source.readline()
    if not line:
        break
    (name, arguments), size = json.loads(line)
    data = source.read(size)
    try:
        value, data = answer(name, arguments, data)
        what = [value, None]
    except OSError as error:
        what, data = [None, ["OSError", [error.errno, error.strerror, error.filename]]], b""
    except Exception as error:
        what, data = [None, [type(error).__name__, str(error)]], b""
    sink.write(json.dumps([what, len(data)]).encode() + b"\\n" + data)
    sink.flush()
""" % READY


class Exec_proxy:
    """A connection to a host, ``[user@]host`` as ssh takes it. :class:`ipbroker.ConnectionError` if there is none.

    Paths are the other machine's; relative ones begin in the user's home, or where :meth:`chdir` went. A method that fails returns None.
    """

    def __init__(self, host: str) -> None:
        if not host or host.startswith("-"):
            raise ValueError(f"{host!r} is no host")
        self.host = host
        self._error: Optional[BaseException] = None
        self._lock = threading.Lock()
        self._said = tempfile.TemporaryFile()
        code = base64.b64encode(_REMOTE.encode()).decode()
        # Of one line, and quoted in a way that all shells know.
        command = f"python3 -c \"import base64; exec(base64.b64decode('{code}'))\""
        program = shlex.split(connection_program)
        try:
            self._process = subprocess.Popen([*program, host, command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said)
        except OSError as error:
            raise ConnectionError(f"{host}: cannot start {program[0]}: {error.strerror}") from None
        assert self._process.stdin is not None and self._process.stdout is not None
        self._sink, self._source = self._process.stdin, self._process.stdout
        # Login shells may say something first.
        line = None
        while line != READY:
            line = self._source.readline()
            if not line:
                self.close()
                raise self._lost()

    def close(self) -> None:
        """Ends the connection."""
        try:
            self._sink.close()
        except OSError:
            pass  # it has ended before
        self._source.close()
        self._process.wait()

    def __enter__(self) -> "Exec_proxy":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lost(self) -> ConnectionError:
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").split("\n")
        words = [line.strip() for line in lines if line.strip()]
        return ConnectionError(f"{self.host}: there is no connection: {words[-1] if words else 'it has ended'}")

    def _ask(self, name: str, *arguments: Any, data: bytes = b"") -> Tuple[Any, bytes]:
        """Has something done over there: its value, and data; raises what went wrong."""
        request = json.dumps([[name, arguments], len(data)], default=os.fspath).encode() + b"\n"
        try:
            with self._lock:
                self._sink.write(request + data)
                self._sink.flush()
                line = self._source.readline()
                if not line:
                    raise self._lost()
                (value, error), size = json.loads(line)
                answer = self._source.read(size)
                if len(answer) < size:
                    raise self._lost()
        except ConnectionError:
            raise
        except (OSError, ValueError):
            raise self._lost() from None
        except BaseException:
            # Ctrl-C amid an answer: what comes then is no answer to the next question.
            self._process.kill()
            raise
        if error is None:
            return value, answer
        kind, words = error
        raise OSError(*words) if kind == "OSError" else RemoteError(kind, words)

    def _do(self, name: str, *arguments: Any, data: bytes = b"") -> Any:
        """The same; what goes wrong is kept."""
        try:
            return self._ask(name, *arguments, data=data)[0]
        except (OSError, IpbrokerError) as error:
            self._keep(error)

    def _keep(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error

    # Errors

    def is_ok(self) -> int:
        """1 if nothing went wrong since :meth:`reset_error`, else 0."""
        return int(self._error is None)

    def get_error(self) -> Optional[BaseException]:
        """The first thing that went wrong since :meth:`reset_error`, an exception; or None."""
        return self._error

    def reset_error(self) -> None:
        """Forgets what went wrong."""
        self._error = None

    # Directories

    def newdir(self) -> Optional[str]:
        """Makes a directory for temporary files; its path."""
        return self._text("newdir")

    def mkdir(self, path: Path, mode: int = 0o777) -> None:
        """Makes a directory."""
        self._do("mkdir", path, mode)

    def chdir(self, path: Path) -> None:
        """Makes a directory the one where relative paths begin."""
        self._do("chdir", path)

    def rmdir(self, path: Path) -> None:
        """Removes an empty directory."""
        self._do("rmdir", path)

    def getcwd(self) -> Optional[str]:
        """The directory where relative paths begin."""
        return self._text("getcwd")

    def _text(self, name: str) -> Optional[str]:
        value = self._do(name)
        return None if value is None else str(value)

    def listdir(self, path: Path = ".") -> Optional[List[str]]:
        """The names in a directory."""
        names = self._do("listdir", path)
        return None if names is None else list(names)

    # Files

    def isdir(self, path: Path) -> Optional[bool]:
        """Whether it is a directory."""
        return self._whether("isdir", path)

    def isfile(self, path: Path) -> Optional[bool]:
        """Whether it is a file."""
        return self._whether("isfile", path)

    def exists(self, path: Path) -> Optional[bool]:
        """Whether it is there."""
        return self._whether("exists", path)

    def _whether(self, name: str, path: Path) -> Optional[bool]:
        value = self._do(name, path)
        return None if value is None else bool(value)

    def stat(self, path: Path) -> Optional[os.stat_result]:
        """What :func:`os.stat` tells of it there."""
        numbers = self._do("stat", path)
        return None if numbers is None else os.stat_result(numbers)

    def chmod(self, path: Path, mode: int) -> None:
        """Changes its permissions."""
        self._do("chmod", path, mode)

    def mkfifo(self, path: Path, mode: int = 0o666) -> None:
        """Makes a named pipe."""
        self._do("mkfifo", path, mode)

    def symlink(self, target: Path, path: Path) -> None:
        """Makes ``path`` a symbolic link to ``target``."""
        self._do("symlink", target, path)

    def unlink(self, path: Path) -> None:
        """Removes a file."""
        self._do("unlink", path)

    def write(self, path: Path, data: Union[str, bytes]) -> None:
        """Makes a file of this content; text is written as UTF-8."""
        self._do("write", path, "wb", data=data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data)

    def read(self, path: Path) -> Optional[str]:
        """A file's content, read as UTF-8; other bytes are kept as :pep:`383` has it."""
        try:
            return self._ask("read", path, 0, -1)[1].decode("utf-8", "surrogateescape")
        except (OSError, IpbrokerError) as error:
            self._keep(error)
            return None

    def upload(self, local: Path, remote: Optional[Path] = None) -> None:
        """Sends a local file, permissions and all; into a directory, under its own name."""
        try:
            path = remote or "."
            if self._ask("isdir", path)[0]:
                path = f"{path}/{os.path.basename(local)}"
            with open(local, "rb") as file:
                chunk = file.read(CHUNK)
                self._ask("write", path, "wb", data=chunk)
                while chunk:
                    chunk = file.read(CHUNK)
                    self._ask("write", path, "ab", data=chunk)
                self._ask("chmod", path, os.fstat(file.fileno()).st_mode & 0o777)
        except (OSError, IpbrokerError) as error:
            self._keep(error)

    def download(self, remote: Path, local: Optional[Path] = None) -> None:
        """Fetches a file, permissions and all; into a directory, under its own name."""
        try:
            path = local or "."
            if os.path.isdir(path):
                path = os.path.join(path, os.path.basename(remote))
            # Nothing is made here before something is there.
            mode, chunk = self._ask("read", remote, 0, CHUNK)
            with open(path, "wb") as file:
                while chunk:
                    file.write(chunk)
                    mode, chunk = self._ask("read", remote, file.tell(), CHUNK)
            os.chmod(path, mode)
        except (OSError, IpbrokerError) as error:
            self._keep(error)

    def run(self, command: str) -> Optional[str]:
        """Runs a command of the shell; what it printed. That it ended otherwise than with 0 is an error, too."""
        try:
            (code, said), data = self._ask("run", command)
        except (OSError, IpbrokerError) as error:
            self._keep(error)
            return None
        if code != 0:
            self._keep(RemoteError("CommandFailed", f"{command!r} ended with {code}: {said.strip()}"))
        return data.decode("utf-8", "surrogateescape")

    def __repr__(self) -> str:
        return f"<Exec_proxy {self.host}>"
