"""Starts engines, runs a program whose futures they work on, stops the engines."""

from __future__ import annotations

import argparse
import ast
import logging
import os
import runpy
import socket
import sys
import traceback
from types import ModuleType
from typing import List, Optional, Sequence, Tuple

from ... import __version__ as ours
from ..._pickle import PYTHON
from ...cluster import Cluster
from ...errors import IpbrokerError
from ...view import View
from .. import scoop
from .._engines import LocalEngines
from . import futures

LOCAL = ("127.0.0.1", "localhost", "::1")


def parser() -> argparse.ArgumentParser:
    """SCOOP's options, as far as they mean something here."""
    parser = argparse.ArgumentParser(
        prog="python -m ipbroker.compat.scoop",
        description="Runs a program whose scoop.futures are worked on by engines of ipbroker, here or on other hosts.",
        epilog="example: python -m ipbroker.compat.scoop --host a b c -n 16 --tunnel program.py arguments",
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--hosts", "--host", nargs="*", metavar="HOST", help="hosts that ssh reaches without a password; one that is named N times gets N workers (default: 127.0.0.1, which needs no ssh)")
    group.add_argument("--hostfile", metavar="FILE", help="a file of hosts: `host [workers]` a line")
    parser.add_argument("-n", type=int, metavar="N", help="workers in all, shared out over the hosts (default: as the hosts say, or one a core of this machine)")
    parser.add_argument("--tunnel", action="store_true", help="workers reach this machine through their SSH connection: no port needs to be open")
    parser.add_argument("--python-interpreter", metavar="PATH", help="the workers' Python (default: this one here, python3 on other hosts)")
    parser.add_argument("--path", "-p", metavar="DIR", help="the working directory (default: this one)")
    parser.add_argument("--verbose", "-v", action="count", default=1, help="say more")
    parser.add_argument("--quiet", "-q", action="store_true", help="say what is wrong only")
    parser.add_argument("--external-hostname", metavar="NAME", help="name or address of this machine as other hosts see it")
    for name in ("-b", "--backend"):
        parser.add_argument(name, metavar="X", help="has no use here: there are no brokers but the controller")
    parser.add_argument("executable", metavar="program.py", nargs="?", help="the program")
    parser.add_argument("args", nargs=argparse.REMAINDER, help="its arguments")
    return parser


def hosts_of_file(path: str) -> List[Tuple[str, int]]:
    """The hosts that a file names, and how many workers each has (0: as many as it takes)."""
    hosts = []
    with open(path) as file:
        for number, line in enumerate(file, 1):
            words = line.partition("#")[0].replace("=", " ").split()
            counts = [word for word in words[1:] if word.isdigit()]
            if len(words) > 1 and not counts:
                raise ValueError(f"{path}:{number}: expected `host [workers]`, found {line.strip()!r}")
            if words:
                hosts.append((words[0], int(counts[0]) if counts else 0))
    return hosts


def share_out(hosts: Sequence[Tuple[str, int]], n: Optional[int]) -> List[Tuple[str, int]]:
    """How many workers each host gets: more are given out in turn, too many taken from the last."""
    counts = dict.fromkeys((name for name, _ in hosts), 0)
    for name, count in hosts:
        counts[name] += count
    names = list(counts)
    if n is None:
        n = sum(counts.values()) or len(names)
    missing = n - sum(counts.values())
    for at in range(missing):
        counts[names[at % len(names)]] += 1
    for name in reversed(names):
        less = min(counts[name], max(0, sum(counts.values()) - n))
        counts[name] -= less
    return [(name, count) for name, count in counts.items() if count]


class Pool:
    """The workers, as long as the program runs."""

    def __init__(self, hosts: Sequence[Tuple[str, int]], tunnel: bool, python: Optional[str], name: Optional[str]) -> None:
        here = sum(count for name, count in hosts if name in LOCAL)
        there = [f"{name}:{count}" for name, count in hosts if name not in LOCAL]
        # Nobody can ask for the history of a cluster that ends with the program.
        options = ["--nodb"]
        if there:
            options += [*([] if tunnel else ["--ip=*"]), *([f"--location={name}"] if name else [])]
            self.cluster = Cluster(sum(count for _, count in hosts) - here, hosts=there, tunnel=tunnel, python=python, options=options)
            self.engines = LocalEngines(self.cluster, "scoop-local")
        else:
            self.cluster = Cluster(here, python=python, options=options)
        self.client = self.cluster.client()
        if there and here:
            self.engines.start(self.client, here)

    def close(self) -> None:
        """Stops them."""
        if hasattr(self, "engines"):
            self.engines.stop()
        self.cluster.close()


def look(view: View, hosts: Sequence[str]) -> None:
    """Says where workers have started, and where something is missing."""
    engines = view.client.engines
    for host in hosts:
        there = [engine for engine in engines if host.rpartition("@")[2] in engine["host"] or host in LOCAL]
        if not there:
            scoop.logger.warning(f"{host}: no worker has started there (`ipctl --hosts {host}` says why).")
            continue
        # Written by another module, as with SCOOP.
        if scoop.logger.isEnabledFor(logging.INFO):
            scoop.logger.handle(scoop.logger.makeRecord("scoop", logging.INFO, "__main__.py", 0, "Worker(s) launched using ipengine", (), None))
        if f"python{PYTHON}" not in there[0]["tags"]:
            scoop.logger.warning(f"{host}: its Python is not {PYTHON} (--python-interpreter names another): functions of the program do not run there.")
        elif host not in LOCAL and not view(targets=[there[0]["uuid"]]).submit(eval, _FIND).result():
            scoop.logger.warning(f"{host}: its Python has no ipbroker (pip install ipbroker): tasks that use scoop themselves do not run there.")


_FIND = "__import__('importlib.util').util.find_spec('ipbroker') is not None"


def acts(source: bytes) -> bool:
    """Whether a program does more at its top than to define what it needs, as in setting something in other modules, and has told what
    is not for workers (``if __name__ == "__main__"``)."""
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError):
        return False  # running it says so
    guards = [part for part in body if isinstance(part, ast.If) and any(getattr(name, "id", "") == "__name__" for name in ast.walk(part.test))]
    rest = [part for part in body if part not in guards and not isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))]
    return bool(guards) and any(
        isinstance(part, ast.Expr) and isinstance(part.value, ast.Call) or isinstance(part, (ast.Attribute, ast.Subscript)) and isinstance(part.ctx, ast.Store)
        for each in rest
        for part in ast.walk(each)
    )


def begin(source: bytes, program: str, arguments: List[str]) -> None:
    """On a worker, what the program does at its top. What fails there matters to those tasks only that need it."""
    sys.argv = [program, *arguments]
    module = sys.modules["SCOOP_WORKER"] = ModuleType("SCOOP_WORKER")
    module.__file__ = program
    exec(compile(source, program, "exec"), vars(module))


def run(program: str, arguments: List[str]) -> int:
    """Runs the program as the main one of this process; its exit status."""
    sys.argv = [program, *arguments]
    try:
        runpy.run_path(program, run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        return 130
    except BaseException as error:
        # The frames of this module, and of runpy, are nobody's concern.
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename != program:
            trace = trace.tb_next
        traceback.print_exception(type(error), error, trace or error.__traceback__)
        return 1
    return 0


def main() -> None:
    """The command line."""
    arguments = parser().parse_args()
    try:
        if arguments.path:
            os.chdir(arguments.path)
        if arguments.executable is None:
            raise ValueError("name a program, not directly behind --host: --host a b -n 4 program.py")
        if not os.path.isfile(arguments.executable):
            raise FileNotFoundError(f"there is no program {arguments.executable}")
        if arguments.n is not None and arguments.n < 1:
            raise ValueError("-n is at least 1")
        hosts = hosts_of_file(arguments.hostfile) if arguments.hostfile else [(name, 1) for name in arguments.hosts or ()]
        hosts = share_out(hosts or [("127.0.0.1", 0)], arguments.n or (None if hosts else len(os.sched_getaffinity(0))))
    except (OSError, ValueError) as error:
        sys.exit(f"scoop: {error}")
    # Workers look for modules where this process does, as it is when they start.
    sys.path.insert(0, os.path.dirname(os.path.abspath(arguments.executable)))
    level = logging.WARNING if arguments.quiet else logging.DEBUG if arguments.verbose > 1 else logging.INFO
    scoop._log(level, False)
    for option in ("b", "backend"):
        if getattr(arguments, option) is not None:
            scoop.logger.warning(f"{'-' * (1 + (option != 'b'))}{option} has no use here: there are no brokers but the controller.")
    say = scoop.logger.info
    size = sum(count for _, count in hosts)
    say(f"SCOOP {scoop.__version__} {scoop.__revision__} on {sys.platform} using Python {' '.join(sys.version.split())}, API: {sys.api_version}")
    say(f"Deploying {size} worker(s) over {len(hosts)} host(s).")
    say("Worker distribution:")
    for at, (name, count) in enumerate(hosts):
        say(f"   {name}:\t{count - 1} + origin" if at == 0 else f"   {name}:\t{count}")
    try:
        pool = Pool(hosts, arguments.tunnel, arguments.python_interpreter, arguments.external_hostname)
    except (IpbrokerError, TimeoutError) as error:
        sys.exit(f"scoop: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    try:
        view = pool.client.view()
        look(view, [name for name, _ in hosts])
        scoop._log(level, True)
        scoop.IS_RUNNING = scoop.IS_ORIGIN = True
        scoop.SIZE = size
        futures._view = view
        with open(arguments.executable, "rb") as file:
            source = file.read()
        if acts(source):
            for engine in view.client.engines:
                # Its tasks come later.
                view(targets=[engine["uuid"]]).submit(begin, source, arguments.executable, arguments.args)
        status = run(arguments.executable, arguments.args)
        say("Root process is done.")
    finally:
        pool.close()
    say("Finished cleaning spawned subprocesses.")
    sys.stdout.flush()
    sys.exit(status)
