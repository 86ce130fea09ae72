"""A progress bar: text in a terminal, a widget in a notebook."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Optional

if TYPE_CHECKING:
    from .jobs import Jobs


def watch(jobs: "Jobs", every: float) -> None:
    """Shows how far jobs are until all have ended, or Ctrl-C."""
    bar: Any = _widget(len(jobs)) or _Text(len(jobs))
    try:
        while not jobs.wait(every):
            bar.show(jobs.done, jobs._failed)
        bar.show(jobs.done, jobs._failed)
    except KeyboardInterrupt:
        bar.end(f"{jobs.done} of {len(jobs)} jobs done; the others go on")
        return
    bar.end(None)


class _Text:
    """A line on stderr, which is written anew on a terminal; elsewhere one line at the end."""

    WIDTH = 24

    def __init__(self, total: int) -> None:
        self.total = total
        self.begin = time.monotonic()
        self.terminal = sys.stderr.isatty()
        self.line = ""

    def show(self, done: int, failed: int) -> None:
        share = done / self.total if self.total else 1.0
        spent = time.monotonic() - self.begin
        filled = int(self.WIDTH * share)
        left = f", {_span(spent / done * (self.total - done))} left" if 0 < done < self.total else ""
        bad = f", {failed} failed" if failed else ""
        self.line = f"{share:4.0%} [{'#' * filled}{'-' * (self.WIDTH - filled)}] {done}/{self.total} jobs{bad}, {_span(spent)}{left}"
        if self.terminal:
            sys.stderr.write(f"\r\x1b[K{self.line}")
            sys.stderr.flush()

    def end(self, why: Optional[str]) -> None:
        if not self.terminal:
            sys.stderr.write(self.line)
        sys.stderr.write(f"\n{why}\n" if why else "\n")
        sys.stderr.flush()


def _span(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _widget(total: int) -> Any:
    """The notebook's bar; None where there is no notebook, or no ipywidgets."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is None or not hasattr(shell, "kernel"):
        return None
    try:
        import ipywidgets
    except ImportError:
        return None

    class Widget:
        def __init__(self) -> None:
            self.bar = ipywidgets.IntProgress(min=0, max=max(total, 1))
            self.text = ipywidgets.Label()
            self.begin = time.monotonic()
            ipython.display.display(ipywidgets.HBox([self.bar, self.text]))

        def show(self, done: int, failed: int) -> None:
            self.bar.value = done
            if failed:
                self.bar.bar_style = "danger"
            elif done == total:
                self.bar.bar_style = "success"
            bad = f", {failed} failed" if failed else ""
            self.text.value = f"{done} of {total} jobs{bad}, {_span(time.monotonic() - self.begin)}"

        def end(self, why: Optional[str]) -> None:
            if why:
                self.text.value = why

    return Widget()
