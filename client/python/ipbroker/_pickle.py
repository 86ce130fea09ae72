"""Functions and arguments as bytes: by name where they can be imported, else by value."""

from __future__ import annotations

import functools
import io
import pickle
import sys
import types
import weakref
from operator import is_
from pickle import HIGHEST_PROTOCOL, PickleBuffer, dumps
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Tuple

from .errors import PicklingError

__all__ = ["Calls", "Pickled", "dump_arguments", "dump_values", "load", "loads", "pickled"]

PROTOCOL = 5
assert HIGHEST_PROTOCOL >= PROTOCOL

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
"""Functions by value are this version's bytecode."""

OUTSIDE = 16 << 10
"""Buffers from this size on travel outside of the pickle."""

KEEP_EVERY = 5e-4
"""Seconds after which an engine has results of a list of calls kept, before the next one begins."""

# What is of this process's main program has no name that another process knows.
_MAIN = b"__main__"
# What cloudpickle has taken by value it puts together again by its own functions.
_BY_VALUE = b"cloudpickle"
# … a class by this one.
_SET_CLASS = b"_class_setstate"


class Pickled:
    """A callable as bytes."""

    __slots__ = ("code", "name", "python", "_seen", "_modules", "__weakref__")

    def __init__(self, code: bytes, name: str, python: Optional[str], seen: "Optional[List[_Seen]]") -> None:
        self.code = code
        self.name = name
        self.python = python
        # What the function consists of and refers to, as it was: None if that can change without notice.
        self._seen = seen
        self._modules = _modules_by_value()

    def fresh(self) -> bool:
        """Whether pickling it again would give the same."""
        if self._seen is None or self._modules != _modules_by_value():
            return False
        for of, state in self._seen:
            now = _state(*of)
            if len(now) != len(state) or not all(map(is_, now, state)):
                return False
        return True

    def many(self) -> "Pickled":
        """The function that takes a list of tuples of arguments, and gives a list of results: see :data:`_MANY`."""
        return Pickled(dumps(_Many(self.code), PROTOCOL), self.name, self.python, None)


# What an engine does with many short calls at once, beside its worker. As text, so that it is no matter which Python runs it, and
# whether that has this package. The first exception ends the list: it comes behind what was done before it, as the native module tells of one.
# Results that were there before the interpreter dies come, too, but for those of its last half millisecond: see worker.keep.
# So does the first result that cannot be pickled: the worker finds _ipbroker_shorten. An interrupt is for all of them.
_MANY = """
def make(code):
    import pickle, sys
    from time import perf_counter as clock
    function = pickle.loads(code)
    plain = {bool, bytes, complex, float, int, str, type(None)}
    class Results(list):
        failure = None
        # What several calls return, such as something cached, is to be each one's own.
        def own(self):
            seen = set(plain)
            if not seen.issuperset(map(type, self)):
                for at, value in enumerate(self):
                    if type(value) not in plain:
                        if id(value) in seen:
                            self[at] = pickle.loads(worker.dump(value, None))
                        seen.add(id(value))
            return self[:]
        def __reduce__(self):
            if self.failure is None:
                return list, (self.own(),)
            return tuple, ([self.own(), self.failure],)
        def _ipbroker_shorten(self, dump, words):
            for at, value in enumerate(self):
                try:
                    dump(value, None)
                except Exception as error:
                    text = words(value, error)
                    del self[at:]
                    self.failure = "PicklingError", text, ["PicklingError: " + text], None, False, None
                    break
            return self
    worker = sys.modules["_ipbroker_worker"]
    keep = getattr(worker, "keep", None)
    if getattr(worker, "has_state", bool)(function):
        def function(*arguments):
            return pickle.loads(code)(*arguments)
    def many(calls):
        results = Results()
        add = results.append
        due = clock() + EVERY if keep else float("inf")
        try:
            for arguments in calls:
                add(function(*arguments))
                if clock() > due:
                    try:
                        keep(results.own())
                        results.clear()
                        due = clock() + EVERY
                    except Exception:
                        due = float("inf")
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            name, words, lines, pickled = worker.report(error, 1)
            results.failure = name.decode(), words.decode(), [lines.decode()], pickled or None, False, None
        return results
    return many
"""


class _Maker:
    """Pickled as an expression that gives ``make``."""

    def __call__(self, code: bytes) -> None:
        raise NotImplementedError

    def __reduce__(self) -> Any:
        return eval, ("exec(source, globals()) or make", {"source": _MANY, "EVERY": KEEP_EVERY})


class _Many:
    def __init__(self, code: bytes) -> None:
        self.code = code

    def __reduce__(self) -> Any:
        return _Maker(), (self.code,)


class Calls:
    """Arguments of calls that were pickled one by one, :func:`dump_values`: where it is unpickled, a list of their tuples."""

    def __init__(self, pickles: List[bytes]) -> None:
        self.pickles = pickles

    def __reduce__(self) -> Any:
        return eval, ("[loads(data)[0] for data in pickles]", {"loads": pickle.loads, "pickles": self.pickles})


class _Register:
    """Pickled as an expression that gives what fills a function of ``singledispatch``."""

    def __call__(self, made: Any, state: Any) -> None:
        raise NotImplementedError

    def __reduce__(self) -> Any:
        return eval, ("lambda made, state: ([setattr(made, *named) for named in state[0].items()], [made.register(*one) for one in state[1]])",)


_GENERIC: Any = functools.singledispatch(len)
_GONE = object()
_known: "weakref.WeakKeyDictionary[Any, Pickled]" = weakref.WeakKeyDictionary()
_CACHE: Any = functools._lru_cache_wrapper
_CACHED = (types.FunctionType, types.BuiltinFunctionType, type)


def pickled(function: Callable[..., Any]) -> Pickled:
    """The callable as bytes; the same function is pickled once, as long as what it refers to stays the same."""
    if not isinstance(function, _CACHED):
        return _pickle(function)
    try:
        known = _known.get(function)
        if known is not None and known.fresh():
            return known
        again = _pickle(function)
        if known is not None and known.code == again.code:
            # The same object: whoever has made something of it finds it again.
            known._seen = again._seen
            return known
        _known[function] = again
        return again
    except TypeError:
        # No weak references, or no hash.
        return _pickle(function)


def _pickle(function: Callable[..., Any]) -> Pickled:
    if not callable(function):
        hint = f": a function is given itself, not its name; shell commands go to client.run([{function!r}])" if isinstance(function, str) else ""
        raise TypeError(f"{function!r} is not callable{hint}")
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    code = _by_name(function)
    if code is not None:
        return Pickled(code, name, None, [])
    code = _by_value(function, lambda: f"the function {name!r}")
    return Pickled(code, name, _python(code), _references(function) if isinstance(function, types.FunctionType) else None)


def _modules_by_value() -> Any:
    """What the user has told cloudpickle not to take by name."""
    cloudpickle = sys.modules.get("cloudpickle")
    return cloudpickle.list_registry_pickle_by_value() if cloudpickle else set()


def _by_name(value: Any, aside: Optional[Callable[[PickleBuffer], bool]] = None) -> Optional[bytes]:
    """A pickle in which functions and classes have names that another process knows; None: by value, then."""
    if _modules_by_value():
        return None
    try:
        data = dumps(value, PROTOCOL, buffer_callback=aside)
    except Exception:  # whatever its own __reduce__ raises
        return None
    return None if _MAIN in data else data


def _cloudpickle(value: Any, buffer_callback: Any = None) -> bytes:
    """By value."""
    file = io.BytesIO()
    _pickler()(file, PROTOCOL, buffer_callback).dump(value)
    return file.getvalue()


@functools.lru_cache(None)
def _pickler() -> Any:
    """cloudpickle's, which sends of what ``functools.cache`` has made the name alone, and neither a ``cached_property`` (its lock; until
    Python 3.12) nor what ``singledispatch`` has made (its weak references)."""
    import cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, value: Any) -> Any:
            if type(value) is _CACHE and not _importable(value):
                size, typed = value.cache_parameters().values()
                return _CACHE, (value.__wrapped__, size, typed, functools._CacheInfo), vars(value)
            if type(value) is types.CodeType:
                # A traceback is to say where this was written; cloudpickle says "<dynamic-code>".
                make, parts = self.dispatch_table[types.CodeType](value)
                return make, tuple(value.co_filename if part == "<dynamic-code>" else part for part in parts)
            if type(value) is functools.cached_property:
                return functools.cached_property, (value.func,), {"attrname": value.attrname}
            if type(value) is types.FunctionType and value.__code__ is _GENERIC.__code__ and not _importable(value):
                named = {name: getattr(value, name) for name in ("__module__", "__name__", "__qualname__", "__doc__")}
                named.update((name, one) for name, one in vars(value).items() if name not in vars(_GENERIC) or name == "__wrapped__")
                # Empty at first: its functions may refer to it.
                return functools.singledispatch, (functools.partial(type),), (named, list(vars(value)["registry"].items())), None, None, _Register()
            reduced = super().reducer_override(value)
            if isinstance(value, type) and reduced is not NotImplemented and value not in _theirs:
                _ours.add(value)
            return reduced

    return Pickler


_ours: "weakref.WeakSet[type]" = weakref.WeakSet()
"""Classes of this process that were sent by value, …"""
_theirs: "weakref.WeakSet[type]" = weakref.WeakSet()
"""… and those that came so."""


def _set_class(kind: type, state: Any) -> None:
    """One of this process that comes back stays what it is: cloudpickle would make it again what it was when it was sent."""
    if kind not in _ours:
        _theirs.add(kind)
        sys.modules["cloudpickle.cloudpickle"]._class_setstate(kind, state)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        return _set_class if name == _SET_CLASS.decode() else found


def loads(data: bytes, buffers: Any = None) -> Any:
    """What is in a pickle of ours."""
    if _SET_CLASS in data:
        return _Unpickler(io.BytesIO(data), buffers=buffers).load()
    return pickle.loads(data, buffers=buffers)


def load(file: io.BytesIO) -> Any:
    """The next of several."""
    return _Unpickler(file).load()


def _importable(value: Any) -> bool:
    try:
        return _MAIN not in dumps(value, PROTOCOL) and value.__module__ not in _modules_by_value()
    except Exception:
        return False


def _by_value(value: Any, what: Callable[[], str]) -> bytes:
    try:
        return _cloudpickle(value)
    except Exception as error:
        culprit = _culprit(value)
        raise PicklingError(f"{what()} cannot be sent to another process{culprit}: {error}") from error


def _culprit(value: Any, levels: int = 8) -> str:
    """What of a value cannot be pickled, in words: so deep at most."""
    parts: Iterable[Tuple[str, Any]]
    if isinstance(value, types.FunctionType):
        parts = [
            *((f"it captures {name!r}", cell) for name, cell in _cells(value)),
            *((f"it uses the global {name!r}", value.__globals__[name]) for name in _names(value.__code__) if name in value.__globals__),
            *((f"it has the default {default!r}", default) for default in value.__defaults__ or ()),
        ]
    elif isinstance(value, dict):
        parts = ((f"[{key!r}]", item) for key, item in value.items())
    elif isinstance(value, (list, tuple)):
        parts = ((f"[{index}]", item) for index, item in enumerate(value))
    elif isinstance(value, types.MethodType):
        parts = [("it is bound to an object", value.__self__)]
    elif hasattr(value, "__dict__") and not isinstance(value, type) and not type(value).__module__.startswith("ipbroker."):
        parts = ((f".{name}", item) for name, item in vars(value).items())
    else:
        return ""
    for where, part in parts:
        try:
            _cloudpickle(part)
        except Exception:
            kind = f"{type(part).__module__}.{type(part).__qualname__}"
            return f" ({where}, a {kind}{_culprit(part, levels - 1) if levels and part is not value else ''})"
    return ""


def _cells(function: types.FunctionType) -> Iterator[Tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
        try:
            yield name, cell.cell_contents
        except ValueError:
            pass


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


_Seen = Tuple[Tuple[types.FunctionType, Tuple[str, ...]], List[Any]]
"""A function, the names in it, and its state."""


def _state(function: types.FunctionType, names: Tuple[str, ...]) -> List[Any]:
    """What a function consists of and refers to, now. Of a name that is no global it matters that it stays so; most are attributes."""
    get = function.__globals__.get
    state = [function.__code__, function.__defaults__, *[get(name, _GONE) for name in names]]
    for own in (function.__kwdefaults__, function.__dict__):
        if own:
            state += [*own, *own.values()]
    for cell in function.__closure__ or ():
        try:
            state.append(cell.cell_contents)
        except ValueError:
            state.append(_GONE)
    return state


def _changes(value: Any) -> bool:
    """Whether what is pickled of a value can change in place."""
    if isinstance(value, type):
        return value.__module__ == "__main__" or "<locals>" in value.__qualname__
    if isinstance(value, types.BuiltinFunctionType):
        return not isinstance(value.__self__, (types.ModuleType, type, type(None)))
    return not isinstance(value, (int, float, complex, bool, str, bytes, type(None), types.CodeType, types.ModuleType))


def _references(function: types.FunctionType) -> Optional[List[_Seen]]:
    """The state of a function by value, and of functions that it refers to.

    None if something of it can change in place, as a list can: then it is pickled each time.
    """
    if _modules_by_value():
        return None
    seen: List[_Seen] = []
    done = set()
    todo = [function]
    while todo:
        function = todo.pop()
        if id(function) in done:
            continue
        done.add(id(function))
        names = tuple(set(_names(function.__code__)))
        values = _state(function, names)
        seen.append(((function, names), list(values)))
        for value in values:
            if isinstance(value, types.FunctionType):
                todo.append(value)
            elif isinstance(value, (tuple, frozenset)):
                values.extend(value)
            elif value is not _GONE and _changes(value):
                return None
    return seen


def dump_arguments(args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Tuple[bytes, Optional[List[memoryview]], Optional[str]]:
    """Arguments as a pickle, the large buffers beside it, and the version of Python that they need, if code is among them."""
    outside: List[memoryview] = []

    def inside(buffer: PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:
            return True
        if raw.nbytes < OUTSIDE:
            return True
        outside.append(raw)
        return False

    named = _by_name((args, kwargs), inside)
    if named is not None:
        return named, outside or None, None
    outside.clear()
    try:
        data = _cloudpickle((args, kwargs), inside)
    except Exception as error:
        raise PicklingError(f"an argument cannot be sent to another process{_argument(args, kwargs)}: {error}") from error
    return data, outside or None, _python(data)


def dump_values(args: Tuple[Any, ...]) -> Tuple[bytes, Optional[str]]:
    """The arguments of one member of an array, buffers and all; and the version of Python that they need."""
    named = _by_name((args, {}))
    if named is not None:
        return named, None
    data = _by_value((args, {}), lambda: f"an argument{_argument(args, {})}")
    return data, _python(data)


def _python(data: bytes) -> Optional[str]:
    return PYTHON if _BY_VALUE in data else None


def _argument(args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> str:
    named = [*((f"argument {at}", value) for at, value in enumerate(args, 1)), *((f"argument {key!r}", value) for key, value in kwargs.items())]
    for name, value in named:
        try:
            _cloudpickle(value)
        except Exception:
            return f" ({name}, a {type(value).__module__}.{type(value).__qualname__}{_culprit(value)})"
    return ""
