"""The Python interpreter of one logical engine.

ipengine starts it, and sends it calls over the socket that it finds as its standard input. Frames go both ways:
`kind u8, number u64, parts u32, length u64 of each part, parts`. Nothing outside the standard library is needed;
cloudpickle comes from the engine where the host has none.
"""

import _thread
import copyreg
import functools
import importlib.util
import io
import mmap
import os
import pickle
import select
import signal
import socket
import struct
import sys
import threading
import time
import traceback
import types

HEAD = struct.Struct("<BQI")
CALL, FUNCTION, FORGET, RESUME = 1, 2, 3, 4  # from the engine
READY, RESULT, ERROR, UNMET, WAITS, RESUMES, KEPT = 1, 2, 3, 4, 5, 6, 7  # to the engine
# In a call: which function, which member of an array, its priority; then the task's id and its variables.
SETTINGS = struct.Struct("<QQi")
NO_INDEX = 2**64 - 1
# Parts from this size on travel by themselves.
LARGE = 64 * 1024
# Parts from this size on get pages of their own: huge ones where the system has them, and never zeroed twice.
PAGES = 1024 * 1024
# Buffers below this size are not worth a part of their own.
OUT_OF_BAND = 8 * 1024
ENGINE_ID = int(os.environ.get("IPBROKER_ENGINE_ID", -1))
# What is rather to be returned.
HINTS = {types.CoroutineType: "; have asyncio.run() run it there", types.GeneratorType: "; return a list of what it gives"}
# Calls that wait below each other, and how much deeper Python may go for each.
NESTED, FRAMES = 400, 200


class Link:
    """Frames on a stream socket."""

    def __init__(self, sock):
        self.sock = sock
        self.buffer = bytearray(256 * 1024)
        self.start = self.end = 0
        # Amid a frame: an interrupt waits until it is whole.
        self.busy = False

    def _fill(self, need):
        """Has `need` bytes in the buffer; raises EOFError at the end of the stream."""
        if self.start + need > len(self.buffer):
            rest = self.buffer[self.start : self.end]
            if need > len(self.buffer):
                self.buffer = bytearray(need)
            self.buffer[: len(rest)] = rest
            self.start, self.end = 0, len(rest)
        while self.end - self.start < need:
            count = self.sock.recv_into(memoryview(self.buffer)[self.end :])
            if not count:
                raise EOFError
            self.end += count

    def _large(self, length):
        """A part of this length, received where it will stay."""
        part = pages(length) if length >= PAGES else bytearray(length)
        have = min(length, self.end - self.start)
        part[:have] = self.buffer[self.start : self.start + have]
        self.start += have
        rest = memoryview(part)[have:]
        while rest:
            count = self.sock.recv_into(rest)
            if not count:
                raise EOFError
            rest = rest[count:]
        return part

    def receive(self):
        """The next frame: its kind, its number, its parts."""
        self.busy = True
        try:
            if self.start == self.end:
                self.start = self.end = 0
            if self.end - self.start < HEAD.size:
                self._fill(HEAD.size)
            kind, number, count = HEAD.unpack_from(self.buffer, self.start)
            self.start += HEAD.size
            if self.end - self.start < 8 * count:
                self._fill(8 * count)
            lengths = struct.unpack_from("<%dQ" % count, self.buffer, self.start)
            self.start += 8 * count
            parts = []
            for length in lengths:
                if length >= LARGE:
                    parts.append(self._large(length))
                    continue
                if self.end - self.start < length:
                    self._fill(length)
                at = self.start
                self.start = at + length
                parts.append(self.buffer[at : at + length])
            return kind, number, parts
        finally:
            self.busy = False

    def send(self, kind, number, parts):
        """Sends a frame; its parts are flat."""
        self.busy = True
        try:
            small = [struct.pack("<BQI%dQ" % len(parts), kind, number, len(parts), *map(len, parts))]
            for part in parts:
                if len(part) < LARGE:
                    small.append(part)
                    continue
                self.sock.sendall(b"".join(small))
                small.clear()
                self.sock.sendall(part)
            if small:
                self.sock.sendall(b"".join(small))
        finally:
            self.busy = False


def pages(length):
    """Memory of this length, as writable as a bytearray."""
    memory = mmap.mmap(-1, length, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            memory.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            pass  # a kernel without them
    return memory


class Call:
    """The call that runs, for whoever asks."""

    __slots__ = ("engine_id", "index", "msg_id", "priority")

    def __init__(self, msg_id, index, priority):
        self.engine_id = ENGINE_ID
        self.msg_id = msg_id
        self.index = index
        self.priority = priority


class Supplied:
    """Brings the engine's cloudpickle to a host that has none. A finder and a loader without their base classes: to import those
    takes a seventh of the time in which an interpreter starts."""

    def __init__(self, source):
        self.source = source

    def find_spec(self, name, path=None, target=None):
        if name in ("cloudpickle", "cloudpickle.cloudpickle"):
            return importlib.util.spec_from_loader(name, self, is_package=name == "cloudpickle")
        return None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        if module.__name__ == "cloudpickle":
            exec("from cloudpickle.cloudpickle import *\nfrom cloudpickle.cloudpickle import dumps, loads", module.__dict__)
        else:
            exec(compile(self.source, "<cloudpickle of ipengine>", "exec"), module.__dict__)


call = None
current = 0  # the number of the call that runs; 0: none
stopped = set()  # the numbers of calls that were asked to stop
waiting = {}  # what calls wait for, by their numbers
nested = 0  # how many calls wait below the one that runs
codes = {}  # functions that were not called yet
functions = {}
link = bell = ring = None
pid = os.getpid()
outputs = []  # of a kernel's calls: what they print is not the kernel's


def asked():
    """The number of the call that was last asked to stop."""
    return int.from_bytes(os.pread(interrupts, 8, 0), "little")


def heed_interrupts():
    """Hears of interrupts from now on, and of the last one before."""
    signal.signal(signal.SIGINT, interrupted)
    stopped.add(asked())


def interrupted(signum, frame):
    """SIGINT: the engine has written which call it means, so that it never hits the next one."""
    number = asked()
    stopped.add(number)
    if number in waiting:
        # It goes on when what it waits for has ended, which may be what its own engine works on: nobody wants that any more.
        # Not on this thread, which may hold locks just now.
        cancel = getattr(waiting[number], "cancel", None)
        if cancel is not None:
            _thread.start_new_thread(cancel, ())
        ring.send(b".")
    elif number == current and not link.busy:
        if imports(frame):
            _thread.start_new_thread(interrupt_soon, (number,))
        else:
            raise KeyboardInterrupt("the task was aborted")


def imports(frame):
    """Whether a module is being imported. Stopped amid that, a package may be left with half of its parts: whoever imports it
    later in this interpreter would fail."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def interrupt_soon(number):
    """Interrupts a call again, if it still runs, when its import may be over. One that never is ends with its interpreter."""
    time.sleep(0.02)
    if number == current:
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)


def wait(future, timeout=None):
    """Works on other calls until the future is done: for a call that waits for tasks that it has submitted. Returns at once
    where that cannot be; then the caller waits in the ordinary way."""
    global nested
    number = current
    if not number or future.done() or threading.get_ident() != threading.main_thread().ident or nested >= NESTED:
        return
    deadline = None if timeout is None else time.monotonic() + timeout
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(limit + FRAMES)
    nested += 1
    waiting[number] = future
    link.send(WAITS, number, [])
    try:
        future.add_done_callback(lambda _: ring.send(b"."))
        while not future.done() and number not in stopped:
            if link.start == link.end:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    break
                ready, _, _ = select.select([link.sock, bell], [], [], left)
                if bell in ready:
                    bell.recv(4096)
                if link.sock not in ready:
                    continue
            serve(*link.receive())
    finally:
        # The engine may have sent another call just now: that one comes first.
        link.send(RESUMES, number, [])
        while serve(*link.receive()) != number:
            pass
        nested -= 1
        del waiting[number]
        sys.setrecursionlimit(limit)
    if number in stopped:
        raise KeyboardInterrupt("the task was aborted")


def keep(values):
    """Sends the beginning of the running call's result: it is there whatever becomes of this process."""
    if os.getpid() != pid:
        return  # one that the call has forked
    link.send(KEPT, current, [dump(values, None)])
    if current in stopped:
        # Asked amid the frame.
        raise KeyboardInterrupt("the task was aborted")


def load(number):
    """The function of this number. It is kept, unless calls could leave something in it for the next ones."""
    function = pickle.loads(codes[number])
    if not has_state(function):
        functions[number] = function
        del codes[number]
    return function


def has_state(function):
    """Whether a callable is one of an object, as bound methods are: then that is new for each call, as an argument is."""
    if isinstance(function, functools.partial):
        plain = (int, float, complex, str, bytes, type(None))
        return has_state(function.func) or not all(isinstance(value, plain) for value in (*function.args, *function.keywords.values()))
    if isinstance(function, (types.BuiltinFunctionType, types.MethodType)):
        return not isinstance(function.__self__, (types.ModuleType, type, type(None)))
    return not isinstance(function, (types.FunctionType, type, functools._lru_cache_wrapper))


def dump(value, buffers):
    """Pickles a result; what pickle cannot do, cloudpickle may."""

    def aside(buffer):
        if buffers is None or buffer.raw().nbytes < OUT_OF_BAND:
            return True
        buffers.append(buffer.raw())
        return False

    try:
        return pickle.dumps(value, 5, buffer_callback=aside)
    except Exception as first:
        if buffers:
            buffers.clear()
        try:
            return by_value(value)
        except Exception:
            raise first from None


class Register:
    """Pickled as an expression that gives what fills a function of singledispatch."""

    def __call__(self, made, state):
        raise NotImplementedError

    def __reduce__(self):
        return eval, ("lambda made, state: ([setattr(made, *named) for named in state[0].items()], [made.register(*one) for one in state[1]])",)


GENERIC = functools.singledispatch(len)


def by_value(value, error=None):
    """Pickles with cloudpickle, which sends of what functools.cache has made the name alone, and neither a cached_property (its lock; until
    Python 3.12) nor what singledispatch has made (its weak references). ``error`` is made again without its ``__init__``."""
    import cloudpickle

    cache = functools._lru_cache_wrapper

    class Pickler(cloudpickle.Pickler):
        def reducer_override(self, value):
            if error is not None and value is error:
                return copyreg.__newobj__, (type(error), *error.args), error.__dict__
            if type(value) is cache and (value.__module__ == "__main__" or "<locals>" in value.__qualname__):
                size, typed = value.cache_parameters().values()
                return cache, (value.__wrapped__, size, typed, functools._CacheInfo), vars(value)
            if type(value) is functools.cached_property:
                return functools.cached_property, (value.func,), {"attrname": value.attrname}
            if type(value) is types.FunctionType and value.__code__ is GENERIC.__code__ and (value.__module__ == "__main__" or "<locals>" in value.__qualname__):
                named = {name: getattr(value, name) for name in ("__module__", "__name__", "__qualname__", "__doc__")}
                named.update((name, one) for name, one in vars(value).items() if name not in vars(GENERIC) or name == "__wrapped__")
                # Empty at first: its functions may refer to it.
                return functools.singledispatch, (functools.partial(type),), (named, list(value.registry.items())), None, None, Register()
            return super().reducer_override(value)

    file = io.BytesIO()
    Pickler(file, 5).dump(value)
    return file.getvalue()


def qualified(kind):
    return kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else "%s.%s" % (kind.__module__, kind.__qualname__)


def dump_error(error):
    """Pickles an exception; nothing, if that cannot be. One whose ``__init__`` takes other arguments than those that it has passed on
    is made again without it."""
    try:
        pickled = dump(error, None)
        # Its class may be known here only.
        if b"__main__" not in pickled:
            pickle.loads(pickled)
            return pickled
    except Exception:
        pass
    try:
        pickled = by_value(error)
        try:
            pickle.loads(pickled)
        except Exception:
            pickled = by_value(error, error)
            pickle.loads(pickled)
        return pickled
    except Exception:
        return b""


def report(error, skip):
    """The parts of an error: name, words, traceback, and itself if it can be pickled."""
    trace = error.__traceback__
    for _ in range(skip):
        trace = trace.tb_next if trace is not None else None
    try:
        words = str(error)
    except Exception:
        words = "<its text cannot be had>"
    try:
        lines = "".join(traceback.format_exception(type(error), error, trace))
    except Exception:
        lines = words
    return [type(error).__name__.encode(), words.encode("utf-8", "replace"), lines.encode("utf-8", "replace"), dump_error(error.with_traceback(None))]


def unsendable(value, error):
    """What is said of a result that cannot be pickled."""
    return "the result, a %s, cannot be pickled: %s%s" % (qualified(type(value)), error, HINTS.get(type(value), ""))


def flush():
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass


def set_variables(variables):
    """Sets variables of the environment (None: removes them); what they were before."""
    before = {}
    for name, value in variables.items():
        before[name] = os.environb.get(name)
        if value is None:
            os.environb.pop(name, None)
        else:
            os.environb[name] = value
    return before


def exit_code(error):
    """With which a process ends that this was raised in."""
    if not isinstance(error, SystemExit):
        return 1
    return 0 if error.code is None else error.code & 255 if isinstance(error.code, int) else 1


def serve(kind, number, parts):
    """Does what one frame of the engine says; the number of the call that goes on, if it says that."""
    if kind == CALL:
        serve_call(number, parts)
    elif kind == FUNCTION:
        codes[number] = parts[0]
    elif kind == FORGET:
        codes.clear()
        functions.clear()
    elif kind == RESUME:
        return number
    return None


def serve_call(number, parts):
    """Runs one call and sends its outcome."""
    global call, current
    which, index, priority = SETTINGS.unpack_from(parts[0])
    msg_id, *granted = bytes(parts[0][SETTINGS.size :]).split(b"\0")
    index = None if index == NO_INDEX else index
    buffers = None if index is not None else []
    outer = call, current
    # By which the call finds what it was granted.
    before = set_variables(dict(variable.split(b"=", 1) for variable in granted)) if granted else None
    kind = ERROR
    try:
        try:
            call = Call(msg_id.decode(), index, priority)
            current = number
            if number in stopped:
                raise KeyboardInterrupt("the task was aborted")
            kind = UNMET
            function = functions[which] if which in functions else load(which)
            arguments, keywords = pickle.loads(parts[1], buffers=parts[2:])
            kind = ERROR
            value = function(*arguments, **keywords)
            if os.getpid() != pid:
                # A process that the call has forked: the engine waits for one answer, and the calls that follow are not for us.
                flush()
                os._exit(0)
            try:
                answer = dump(value, buffers)
            except Exception as error:
                # Of many calls that came as one, those before the one whose result it is have theirs.
                shorten = getattr(type(value), "_ipbroker_shorten", None)
                if shorten is None:
                    raise pickle.PicklingError(unsendable(value, error)) from None
                answer = dump(shorten(value, dump, unsendable), buffers)
            kind, answer = RESULT, [answer] + (buffers or [])
        except BaseException as error:
            if os.getpid() != pid:
                if not isinstance(error, (SystemExit, KeyboardInterrupt)):
                    traceback.print_exception(type(error), error, error.__traceback__.tb_next)
                flush()
                os._exit(exit_code(error))
            # A module that is missing here may be there on another engine; anything else fails everywhere.
            if kind == UNMET and not isinstance(error, ImportError):
                kind = ERROR
            answer = report(error, 1)
            del error
        finally:
            call, current = outer
    except KeyboardInterrupt:
        # A second signal, amid the report of the first.
        call, current = outer
        kind, answer = ERROR, [b"KeyboardInterrupt", b"the task was aborted", b"", b""]
    stopped.discard(number)
    if before:
        set_variables(before)
    flush()
    link.send(kind, number, answer)


def connect():
    """Says on the standard input that we are ready. Nothing that a call starts shall read from there."""
    global link
    sock = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    link = Link(sock)
    found = importlib.util.find_spec("cloudpickle") is not None
    link.send(READY, 0, [b"%d.%d" % sys.version_info[:2], b"\1" if found else b"\0"])


def begin():
    """Takes what the engine sends before its first call."""
    global interrupts, outputs, bell, ring
    _, fds, _, _ = socket.recv_fds(link.sock, 1, 3)
    interrupts = fds[0]
    outputs = [open(fd, "w", 1, "utf-8", "backslashreplace") for fd in fds[1:]]
    _, _, (source,) = link.receive()
    if source:
        sys.meta_path.append(Supplied(source))
    bell, ring = socket.socketpair()
    ring.setblocking(True)


def main():
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        connect()
        begin()
        heed_interrupts()
        while True:
            serve(*link.receive())
    except EOFError:
        pass
    # The engine is gone or has no more use for us; threads of calls do not hold us up.
    flush()
    os._exit(0)


def attach(loop):
    """Runs calls in a Jupyter kernel, whose loop waits meanwhile: the engine sends one thing at a time."""

    def heard(fd, _):
        usual = sys.stdout, sys.stderr, signal.getsignal(signal.SIGINT)
        try:
            if ring is None:
                begin()
            sys.stdout, sys.stderr = outputs
            heed_interrupts()
            while True:
                serve(*link.receive())
                if link.start == link.end:
                    break
        except (EOFError, OSError):
            # Who has started us is gone; the kernel notices it by itself.
            loop.remove_handler(fd)
        finally:
            signal.signal(signal.SIGINT, usual[2])
            sys.stdout, sys.stderr = usual[:2]

    connect()
    loop.add_handler(link.sock.fileno(), heard, loop.READ)
