"""Bakapara: lists of shell commands, as N. Okazaki's module of that name runs them on an IPython cluster.

    from ipbroker.compat.bakapara import Bakapara

    bp = Bakapara(profile="mezcal")
    jobs = [dict(cmd="sleep 10") for i in range(100)]
    bp.run(jobs)
    bp.status()
    jobs[0]["result"]["code"]

From a shell: ``python -m ipbroker.compat.bakapara -p mezcal < jobs.json > results.json``. The cluster is one that runs:
``ipctl --profile=mezcal …``. Otherwise than there, ``abort`` and ``interrupt`` also stop the jobs that run.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from contextlib import ExitStack
from datetime import datetime, timedelta
from typing import Any, Dict, Iterable, List, Optional, Sequence, TextIO

from ..client import Client
from ..errors import IpbrokerError, JobError
from ..jobs import Jobs

Job = Dict[str, Any]


class Bakapara:
    """A cluster's client for lists of jobs. The arguments are those of IPython's ``Client``; how ssh reaches ``sshserver`` is in its configuration."""

    def __init__(
        self,
        url_file: "Optional[str | os.PathLike[str]]" = None,
        profile: Optional[str] = None,
        profile_dir: "Optional[str | os.PathLike[str]]" = None,
        *,
        ipython_dir: "Optional[str | os.PathLike[str]]" = None,
        cluster_id: Optional[str] = None,
        sshserver: Optional[str] = None,
        timeout: float = 10.0,
    ) -> None:
        if ipython_dir is not None and profile_dir is None:
            profile, profile_dir = None, os.path.join(ipython_dir, f"profile_{profile or 'default'}")
        self.client = Client(profile, profile_dir=profile_dir, cluster_id=cluster_id, file=url_file, ssh=sshserver, timeout=timeout)
        # Jobs begin here, wherever this process goes later.
        self._cwd = os.getcwd()
        self._given: List[Job] = []
        self._jobs: Optional[Jobs] = None
        self._written = 0
        self._begun = datetime.now()

    def run(self, jobs: Iterable[Job]) -> bool:
        """Starts the jobs, and does not wait for them. False, and nothing is done, if earlier ones have not ended."""
        if self._jobs is not None and not self.ready():
            return False
        jobs = list(jobs)
        for number, job in enumerate(jobs, 1):
            if not isinstance(job, dict):
                raise JobError(f'jobs:{number}: a job is a dict like {{"cmd": "sleep 10"}}, not {job!r}; nothing was submitted')
        self._begun = datetime.now()
        self._jobs = self.client.run(jobs, cwd=self._cwd)
        self._given, self._written = jobs, 0
        return True

    def wait(self, timeout: Optional[float] = 1e-3) -> None:
        """Waits for the jobs, at most ``timeout`` s (None: until all have ended), and writes the results that are there into them."""
        if self._jobs is not None:
            self._jobs.wait(timeout)
            self._write(self._jobs)

    def _write(self, jobs: Jobs) -> List[Job]:
        """Gives the caller's jobs the results that came since; those jobs, in the order in which they ended."""
        ended = jobs._ended[self._written :]
        self._written += len(ended)
        for at in ended:
            # There, a job has an error only if something went wrong with it.
            self._given[at]["result"] = {key: value for key, value in jobs[at]["result"].items() if key != "error" or value is not None}
        return [self._given[at] for at in ended]

    def status(self, interval: float = 1.0, timeout: Optional[float] = None, fo: Optional[TextIO] = None) -> None:
        """Shows each ``interval`` s how many jobs have ended, until all have, or for ``timeout`` s. Writes results as :meth:`wait` does.

        Ctrl-C ends the watching, and leaves the jobs alone.
        """
        jobs, out = self._jobs, fo or sys.stdout
        if jobs is None:
            return
        deadline = None if timeout is None or timeout < 0 else time.monotonic() + timeout
        self.wait(0)
        while not self.ready() and (deadline is None or time.monotonic() < deadline):
            out.write(f"{self._progress(jobs)}\r")
            out.flush()
            self.wait(interval if deadline is None else max(0.0, min(interval, deadline - time.monotonic())))
        out.write(f"{self._progress(jobs)}\n")
        if self.ready():
            out.write(f"{len(jobs)} tasks completed in {self._elapsed(jobs)}\n")
        out.flush()

    def _progress(self, jobs: Jobs) -> str:
        return f"{self._written}/{len(jobs)} tasks finished after {self._elapsed(jobs)}"

    def _elapsed(self, jobs: Jobs) -> timedelta:
        """Since the jobs were submitted, until the last result; until now while some are awaited."""
        if not jobs or not self.ready():
            return datetime.now() - self._begun
        results = [job["result"] for job in jobs]
        return max(_time(result["received"]) for result in results) - min(_time(result["submitted"]) for result in results)

    def ready(self) -> bool:
        """Whether there were jobs, and all have ended."""
        return self._jobs is not None and self._jobs.done == len(self._jobs)

    def successful(self) -> bool:
        """Whether all jobs could be run, whatever their codes. :class:`AssertionError` if some have not ended."""
        if self._jobs is None or not self.ready():
            raise AssertionError("the jobs have not ended")
        return all(job["result"]["status"] == "ok" for job in self._jobs)

    def abort(self) -> None:
        """Ends the jobs: those that wait, and those that run."""
        if self._jobs is not None:
            self._jobs.abort()

    interrupt = abort

    def shutdown(self) -> None:
        """Ends the cluster: its controller, and the engines that it started."""
        self.client.shutdown()

    def __len__(self) -> int:
        """How many engines there are."""
        return len(self.client.engines)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """The command line; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m ipbroker.compat.bakapara",
        description="Runs jobs, one JSON object a line, on a cluster; each comes back with its result as it ends.",
    )
    parser.add_argument("-p", "--profile", default="default", help="the cluster's profile (%(default)s)")
    parser.add_argument("-i", "--input", metavar="FILE", help="file of the jobs (standard input)")
    parser.add_argument("-o", "--output", metavar="FILE", help="file for the results (standard output)")
    parser.add_argument("-l", "--logging", metavar="FILE", help="file for the log (standard error)")
    options = parser.parse_args(arguments)
    try:
        with ExitStack() as files:

            def opened(path: Optional[str], mode: str, usual: TextIO) -> Any:
                return files.enter_context(open(path, mode, encoding="utf-8")) if path else usual

            log = opened(options.logging, "w", sys.stderr)
            logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=log)
            jobs = _read(opened(options.input, "r", sys.stdin), options.input or "standard input")
            _run(Bakapara(profile=options.profile), jobs, opened(options.output, "w", sys.stdout))
    except (IpbrokerError, OSError) as error:
        print(f"bakapara: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _read(lines: Iterable[str], name: str) -> List[Job]:
    jobs = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                jobs.append(json.loads(line))
            except ValueError as error:
                raise JobError(f"{name}, line {number}: this is no JSON: {error}; nothing was submitted") from None
    return jobs


def _run(bp: Bakapara, jobs: List[Job], out: TextIO) -> None:
    logging.info("total %d jobs on %d engines", len(jobs), len(bp))
    bp.run(jobs)
    assert bp._jobs is not None
    done = 0
    try:
        for _ in bp._jobs.as_completed():
            for job in bp._write(bp._jobs):
                done += 1
                out.write(f"{json.dumps(job)}\n")
                out.flush()
                result = job["result"]
                if result["status"] == "ok":
                    what = f"returned {result['code']} in {result['elapsed']} sec on {result['host']}: {job['cmd']}"
                else:
                    what = f"failed ({result.get('error') or result['status']}): {job['cmd']}"
                logging.info("[%d/%d] %s", done, len(jobs), what)
    except BaseException:
        # Ctrl-C, or nobody reads the results any more.
        bp.abort()
        raise
    logging.info("completed")


if __name__ == "__main__":
    sys.exit(main())
