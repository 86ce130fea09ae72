"""Shell commands: the job lines of ``ipclient run``, as dicts."""

from __future__ import annotations

import json
import numbers
import os
import time
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple, Union, overload

from . import _nested

if TYPE_CHECKING:
    from .client import Client, Link

Job = Dict[str, Any]


class Jobs(Sequence[Job]):
    """Jobs that were submitted together. Each is a copy of the dict it was given as; ``"result"`` is added when it ends, with ``code``,
    ``status``, ``host``, ``engine_id``, ``submitted``, ``started``, ``completed``, ``received``, ``elapsed``, ``error`` and, where
    captured, ``stdout`` and ``stderr``."""

    def __init__(self, client: "Client", link: "Link", jobs: List[Job]) -> None:
        self._client = client
        self._link = link
        self._jobs = jobs
        self._changed = _nested.Condition(self.abort)
        # Places of jobs, in the order in which they ended.
        self._ended: List[int] = []
        self._failed = 0
        self.ids: List[str] = []

    def deliver(self, results: Sequence[Tuple[int, str]]) -> bool:
        """Takes what the results thread has; true if that was all."""
        with self._changed:
            for at, text in results:
                result = json.loads(text)
                self._jobs[at]["result"] = result
                self._ended.append(at)
                if not _ok(result):
                    self._failed += 1
            self._changed.notify_all()
            return len(self._ended) == len(self._jobs)

    @overload
    def __getitem__(self, at: int) -> Job: ...
    @overload
    def __getitem__(self, at: slice) -> List[Job]: ...
    def __getitem__(self, at: Union[int, slice]) -> Union[Job, List[Job]]:
        return self._jobs[at]

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def done(self) -> int:
        """How many have ended."""
        return len(self._ended)

    @property
    def failed(self) -> List[Job]:
        """Those that have ended, but not with code 0."""
        return [self._jobs[at] for at in list(self._ended) if not _ok(self._jobs[at]["result"])]

    def as_completed(self, timeout: Optional[float] = None) -> Iterator[Job]:
        """The jobs, as they end. :class:`TimeoutError` when not all have ended after ``timeout`` s."""
        deadline = None if timeout is None else time.monotonic() + timeout
        for count in range(len(self._jobs)):
            self._until(lambda: len(self._ended) > count, deadline, timeout)
            yield self._jobs[self._ended[count]]

    def wait(self, timeout: Optional[float] = None) -> bool:
        """Waits until all have ended, at most ``timeout`` s; whether they have."""
        try:
            self._until(lambda: len(self._ended) == len(self._jobs), None if timeout is None else time.monotonic() + timeout, timeout)
        except TimeoutError:
            return False
        return True

    def _until(self, there: Callable[[], bool], deadline: Optional[float], timeout: Optional[float]) -> None:
        if not there():
            self._link.check_wait("the list of jobs")
        with self._changed:
            while not there():
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError(f"{self.done} of {len(self)} jobs have ended after {timeout} s")
                self._changed.wait(left)

    def abort(self) -> None:
        """Ends those that have not ended."""
        if self.done < len(self._jobs):
            # In a forked process, by a connection of its own.
            self._client._link.native.abort(self.ids, True, True)

    def progress(self, every: float = 0.2) -> "Jobs":
        """Shows how far they are, until all have ended: a bar in a terminal, a widget in a notebook.

        Ctrl-C ends the watching, and leaves the jobs alone.
        """
        from .progress import watch

        watch(self, every)
        return self

    def __repr__(self) -> str:
        return f"<ipbroker.Jobs: {self.done} of {len(self)} done, {self._failed} failed>"

    def _repr_html_(self) -> str:
        from .html import jobs

        return jobs(self)


def _ok(result: Mapping[str, Any]) -> bool:
    return bool(result["status"] == "ok" and result["code"] == 0)


def _own(job: Any, number: int) -> Job:
    if isinstance(job, str):
        return {"cmd": job}
    if isinstance(job, Mapping):
        return dict(job)
    from .errors import JobError

    raise JobError(f"jobs:{number}: a job is a dict like {{\"cmd\": \"sort a.txt\"}} or a string, not {job!r}; nothing was submitted")


def _plain(value: Any) -> Any:
    """Paths, and numbers of numpy, as JSON has them."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise TypeError(f"{value!r} cannot be part of a job: JSON has no {type(value).__name__}")


_encode = json.JSONEncoder(default=_plain).encode


def run(client: "Client", jobs: Iterable[Mapping[str, Any]], options: Dict[str, Any]) -> Jobs:
    """Submits jobs; options hold for those that do not say otherwise."""
    cwd = os.path.abspath(options.pop("cwd", None) or os.getcwd())
    known = {"any", "capture", "cd", "cpus", "env", "gpus", "host", "limit", "max_crashes", "memory", "nodes", "prefer", "prefer_wait", "priority", "require", "resources", "retries", "retry_delay", "scratch", "tags", "time", "timeout", "unmet_exit"}
    unknown = sorted(options.keys() - known)
    if unknown:
        raise TypeError(f"unknown option {unknown[0]!r}: there are cwd, {', '.join(sorted(known))}")
    if isinstance(jobs, (str, bytes, Mapping)):
        raise TypeError("jobs is a list, of one job too: run([\"sort a.txt\"])")
    own: List[Job] = [_own(job, number) for number, job in enumerate(jobs, 1)]
    lines = []
    for number, job in enumerate(own, 1):
        job.pop("result", None)
        try:
            line = {**options, **job}
            priority = _nested.priority(line.get("priority"))
            lines.append(_encode(line if priority is None else {**line, "priority": priority}))
        except (TypeError, ValueError) as error:
            from .errors import JobError

            raise JobError(f"jobs:{number}: {error}; nothing was submitted") from None
    link = client._link
    submitted = Jobs(client, link, own)
    if not own:
        return submitted
    number = next(link.tags)
    link.pending[number] = submitted
    try:
        submitted.ids = link.native.run_jobs(lines, cwd, number)
    except BaseException:
        del link.pending[number]
        raise
    return submitted
