"""How past tasks went, as ``ipclient report`` tells it."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from html import escape
from typing import Any, List, Mapping, Optional, Union

from .cluster import program
from .errors import IpbrokerError


class Report:
    """One HTML file, which needs nothing else: ``html`` is its text. A notebook shows it."""

    def __init__(self, html: str) -> None:
        self.html = html

    def save(self, path: "Union[str, os.PathLike[str]]") -> None:
        """Writes it into a file."""
        with open(path, "w", encoding="utf-8") as file:
            file.write(self.html)

    def __repr__(self) -> str:
        tasks = re.search("<h1>(.*?)</h1>", self.html)
        return f"<ipbroker.Report of {tasks.group(1) if tasks else '?'}>"

    def _repr_html_(self) -> str:
        # A document of its own: its style is not the notebook's, and nothing in it can run.
        return f'<iframe sandbox srcdoc="{escape(self.html)}" style="width:100%;height:45em;border:1px solid #8888"></iframe>'


def report(where: Mapping[str, Any], file: str, ids: List[str], since: Optional[str]) -> Report:
    """What the controller that is found in this way knows of tasks."""
    # The file that led there leads there again, but for one on another host.
    found = {key: value for key, value in where.items() if value is not None} if where["ssh"] else {"file": file, "timeout": where["timeout"]}
    words = [program("ipclient")]
    for key, value in found.items():
        words += ["--connect-timeout" if key == "timeout" else "--" + key.replace("_", "-"), str(value)]
    words += ["report", "--output", "-"]
    if since is not None:
        words += ["--since", since]
    try:
        done = subprocess.run([*words, "--", *ids], stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace")
    except OSError as error:
        if error.errno == errno.E2BIG:
            raise ValueError(f"{len(ids)} ids are too many at once: use since") from None
        raise
    if done.returncode:
        raise IpbrokerError(re.sub("^ipclient: ", "", done.stderr.strip()) or f"ipclient ended with code {done.returncode}")
    return Report(done.stdout)
