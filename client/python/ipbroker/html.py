"""What a notebook shows of clusters, clients, engines and jobs."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any, Dict, Iterable, List, Sequence

if TYPE_CHECKING:
    from .client import Client
    from .cluster import Cluster
    from .jobs import Jobs

_SHOWN = 50
"""Rows of a table."""


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]], more: int = 0) -> str:
    """A small table."""
    head = "".join(f'<th style="text-align:left">{escape(text)}</th>' for text in heads)
    body = "".join("<tr>" + "".join(f'<td style="text-align:left">{escape(_text(cell))}</td>' for cell in row) + "</tr>" for row in rows)
    rest = f'<tr><td colspan="{len(heads)}">… and {more} more</td></tr>' if more else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}{rest}</tbody></table>"


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value)


class Rows(List[Dict[str, Any]]):
    """A list of dicts that a notebook shows as a table."""

    def __init__(self, what: str, rows: Iterable[Dict[str, Any]]) -> None:
        super().__init__(rows)
        self._what = what

    def __repr__(self) -> str:
        return f"{len(self)} {self._what}: {super().__repr__()}"

    def _repr_html_(self) -> str:
        return f"<div><b>{len(self)} {escape(self._what)}</b>{engines(self)}</div>" if self else f"<div>no {escape(self._what)}</div>"


def engines(rows: Sequence[Dict[str, Any]]) -> str:
    """A table of engines."""
    heads = ("id", "host", "pid", "tags", "running", "completed", "ping (ms)", "version")
    cells = [
        (
            row.get("id"),
            (row.get("host") or [""])[0],
            row.get("pid"),
            row.get("tags"),
            row.get("outstanding"),
            row.get("completed"),
            row.get("ping"),
            row.get("version"),
        )
        for row in rows[:_SHOWN]
    ]
    return table(heads, cells, max(0, len(rows) - _SHOWN))


def client(client: "Client") -> str:
    """A client, and the engines it knows."""
    if client.closed:
        return "<div><b>ipbroker.Client</b>: closed</div>"
    where = f"<div><b>ipbroker.Client</b> {escape(client.connection_file)}"
    try:
        rows = client.engines
    except Exception as error:  # a notebook should show the object, whatever happens to its cluster
        return f"{where}: {escape(str(error))}</div>"
    return f"{where}{rows._repr_html_()}</div>"  # type: ignore[attr-defined]


def cluster(cluster: "Cluster") -> str:
    """A cluster."""
    text = escape(repr(cluster)[1:-1])
    spare = next((each for each in cluster._clients if not each.closed), None)
    return f"<div>{text}{client(spare) if spare and cluster.running else ''}</div>"


def jobs(jobs: "Jobs") -> str:
    """Jobs, and what became of them."""
    done, failed, total = jobs.done, len(jobs.failed), len(jobs)
    width = 100 * done / total if total else 100.0
    colour = "#c0392b" if failed else "#2980b9"
    bar = (
        '<div style="width:20em;border:1px solid #888;height:1em;display:inline-block;vertical-align:middle">'
        f'<div style="width:{width:.1f}%;background:{colour};height:100%"></div></div>'
    )
    rows = []
    for job in jobs[:_SHOWN]:
        result = job.get("result") or {}
        rows.append((job.get("id"), job.get("cmd"), result.get("status", "…"), result.get("code"), result.get("host"), result.get("elapsed")))
    heads = ("id", "cmd", "status", "code", "host", "elapsed")
    return f"<div>{bar} {done} of {total} jobs done, {failed} failed{table(heads, rows, max(0, total - _SHOWN))}</div>"
