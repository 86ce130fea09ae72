"""Views: calls with options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Dict, Iterable, List, Optional, Tuple

from . import _nested
from ._pickle import Pickled, pickled
from .futures import Future
from .map import Flow, MapIterator

if TYPE_CHECKING:
    from .client import Client, Link

_REMEMBERED = 64
"""Functions of which a view keeps the packed request."""


class View:
    """Calls on a cluster, with options that hold for all of them. A view is never changed: ``view(retries=2)`` is a new one."""

    def __init__(self, client: "Client", options: Dict[str, Any]) -> None:
        self.client = client
        self._options = options
        self._native_options = _native_options(options)
        self._calls: Dict[Tuple[int, Optional[int], Optional[str]], Tuple[Pickled, Any, Any]] = {}
        if options:
            # What is wrong with them is said here, not at the first call.
            client._link.native.check(self._native_options)

    @property
    def options(self) -> Dict[str, Any]:
        """The options, as they were given."""
        return dict(self._options)

    def __call__(self, **options: Any) -> "View":
        """A view with other options, too."""
        return View(self.client, {**self._options, **options})

    view = __call__

    def _call(self, function: Callable[..., Any], link: "Link", python: Optional[str]) -> Tuple[Any, str]:
        """The packed request of a function's calls, and its name. ``python``: the version that the arguments need."""
        code = pickled(function)
        return self._packed(code, link, python), code.name

    def _deeper(self, priority: Optional[int]) -> Dict[str, Any]:
        return self._native_options if priority is None else {**self._native_options, "priority": priority}

    def _packed(self, code: Pickled, link: "Link", python: Optional[str]) -> Any:
        priority = _nested.priority(self._options.get("priority"))
        python = code.python or python
        key = (id(code), priority, python)
        known = self._calls.get(key)
        if known is not None and known[2] is link:
            return known[1]
        if python is not None:
            link.check_python(code.name)
        call = link.native.call(code.code, code.name, python, self._deeper(priority))
        if len(self._calls) >= _REMEMBERED:
            self._calls.clear()
        self._calls[key] = (code, call, link)
        return call

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """Calls a function once."""
        return self.client._link.submit(self, function, args, kwargs)

    def map(self, function: Callable[..., Any], *iterables: Iterable[Any], timeout: Optional[float] = None, chunksize: Optional[int] = None) -> MapIterator:
        """Calls a function for each item (or for the items at the same place of several iterables): results in their order.

        The iterables are read as the results are consumed, some calls ahead. ``chunksize``: calls that travel together;
        by default as many as it takes to keep the engines busy.
        """
        return Flow(self, function, iterables, zip(*iterables), timeout, chunksize).begin()

    def map_unordered(self, function: Callable[..., Any], *iterables: Iterable[Any], timeout: Optional[float] = None, chunksize: Optional[int] = None) -> MapIterator:
        """Like :meth:`map`, with the results as they come."""
        return Flow(self, function, iterables, zip(*iterables), timeout, chunksize, ordered=False).begin()

    def starmap(self, function: Callable[..., Any], arguments: Iterable[Iterable[Any]], *, timeout: Optional[float] = None, chunksize: Optional[int] = None) -> MapIterator:
        """Calls a function for each tuple of arguments."""
        return Flow(self, function, [arguments], map(tuple, arguments), timeout, chunksize).begin()

    def map_reduce(
        self,
        mapper: Callable[[Any], Iterable[Tuple[Any, Any]]],
        reducer: Callable[[Tuple[Any, List[Any]]], Any],
        items: Iterable[Any],
        map_chunksize: int = 1,
        reduce_chunksize: int = 100,
    ) -> List[Any]:
        """MapReduce: ``mapper(item)`` gives pairs ``(key, value)``, ``reducer((key, values))`` a result for each key.

        Engines map ``map_chunksize`` items at a time and part the keys among them; engines collect the values of their keys
        and reduce them, about ``reduce_chunksize`` keys at a time or more. This process passes the values on without
        unpacking them. The results are in the order in which their keys came.
        """
        from .mapreduce import map_reduce

        return map_reduce(self, mapper, reducer, items, map_chunksize, reduce_chunksize)

    def __repr__(self) -> str:
        options = "".join(f", {key}={value!r}" for key, value in self._options.items())
        return f"<ipbroker.View of {self.client!r}{options}>"


def _native_options(options: Dict[str, Any]) -> Dict[str, Any]:
    """Futures become ids."""
    native = dict(options)
    for key in ("after", "follow"):
        if options.get(key) is not None:
            from .client import _ids

            native[key] = _ids(options[key])
    return native
