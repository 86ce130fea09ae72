"""MapReduce on a view: engines map and partition, engines group and reduce. Values pass the client as bytes that it never reads."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterable, Iterator, List, Tuple

if TYPE_CHECKING:
    from .view import View

PARTITIONS = 4
"""Partitions of the keys for each engine: enough that none is much longer than the others."""

# What a chunk of items became: for each partition that has any, its number, how many keys, and them with their values.
Mapped = List[Tuple[int, int, bytes]]


def map_reduce(view: "View", mapper: Any, reducer: Any, items: Iterable[Any], map_chunksize: int, reduce_chunksize: int) -> List[Any]:
    """See :meth:`View.map_reduce`."""
    if map_chunksize < 1 or reduce_chunksize < 1:
        raise ValueError("chunk sizes are at least 1")
    engines = max(1, view.client._link.native.engine_count())
    parts: Dict[int, List[Tuple[int, bytes]]] = {}
    keys: Dict[int, int] = {}
    for at, mapped in enumerate(view.map(_mapping(mapper, PARTITIONS * engines), _chunks(items, map_chunksize))):
        for part, count, data in mapped:
            parts.setdefault(part, []).append((at, data))
            keys[part] = max(keys.get(part, 0), count)
    found: List[Tuple[Tuple[int, int], Any]] = []
    for results in view.map(_reducing(reducer), _together(parts, keys, reduce_chunksize)):
        found.extend(results)
    # Keys are no part of this: they may have no order.
    found.sort(key=lambda result: result[0])
    return [result for _, result in found]


def _chunks(items: Iterable[Any], size: int) -> Iterator[List[Any]]:
    items = iter(items)
    while True:
        chunk = list(islice(items, size))
        if not chunk:
            return
        yield chunk


def _together(parts: Dict[int, List[Tuple[int, bytes]]], keys: Dict[int, int], size: int) -> Iterator[List[Tuple[int, bytes]]]:
    """What is reduced together: one partition, or several that have few keys."""
    group: List[Tuple[int, bytes]] = []
    count = 0
    for part in sorted(parts):
        if group and count + keys[part] > size:
            yield group
            group, count = [], 0
        # Nothing is kept of what was sent.
        group.extend(parts.pop(part))
        count += keys[part]
    if group:
        yield group


# Functions by value: the engines need no ipbroker.


def _mapping(mapper: Any, partitions: int) -> Callable[[List[Any]], Mapped]:
    def place(key: Any) -> int:
        """The same for equal keys in all processes, unlike hash()."""
        import numbers
        from zlib import crc32

        if isinstance(key, str):
            return crc32(key.encode("utf-8", "surrogatepass"))
        if isinstance(key, bytes):
            return crc32(key)
        if isinstance(key, numbers.Number):
            return hash(key)
        if isinstance(key, tuple):
            value = len(key)
            for part in key:
                value = (value * 1_000_003 + place(part)) & 0xFFFFFFFF
            return value
        # Whatever else may be equal is in one partition.
        return 0

    def mapping(items: List[Any]) -> Mapped:
        import pickle

        groups: Dict[Any, Tuple[int, List[Any]]] = {}
        for item in items:
            for key, value in mapper(item):
                known = groups.get(key)
                if known is None:
                    known = groups[key] = (len(groups), [])
                known[1].append(value)
        parts: Dict[int, Dict[Any, Tuple[int, List[Any]]]] = {}
        for key, group in groups.items():
            parts.setdefault(place(key) % partitions, {})[key] = group

        def dump(part: Any) -> bytes:
            try:
                return pickle.dumps(part, 5)
            except Exception:  # classes that this process has by value
                import cloudpickle

                return bytes(cloudpickle.dumps(part, 5))

        return [(number, len(part), dump(part)) for number, part in parts.items()]

    return mapping


def _reducing(reducer: Any) -> Callable[[List[Tuple[int, bytes]]], List[Tuple[Tuple[int, int], Any]]]:
    def reducing(parts: List[Tuple[int, bytes]]) -> List[Tuple[Tuple[int, int], Any]]:
        import pickle

        groups: Dict[Any, Tuple[Tuple[int, int], List[Any]]] = {}
        for chunk, data in sorted(parts, key=lambda part: part[0]):
            for key, (at, values) in pickle.loads(data).items():
                known = groups.get(key)
                if known is None:
                    # When the key first came: results are in that order.
                    groups[key] = ((chunk, at), values)
                else:
                    known[1].extend(values)
        return [(at, reducer((key, values))) for key, (at, values) in groups.items()]

    return reducing
