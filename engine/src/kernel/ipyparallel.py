"""IPython parallel's kernel as a Jupyter kernel: what `ipengine --kernel ipyparallel` starts for each of its logical engines.

    IPBROKER_ENGINE_ID=0 IPBROKER_ENGINE_UUID=… python -c "this text" -f CONNECTION_FILE [OPTIONS]

It is ipykernel's application with IPython parallel's kernel in it. Where IPBROKER_CALLS is set,
it also runs the calls that come over its standard input (worker.py). Options and configuration files are those of IPython
parallel's engine, as far as they are about the kernel: `ipengine_config.py`, `-c`, `-s`, `--profile-dir`,
`--IPKernelApp.exec_lines`, `--InteractiveShell.…`, and so on.
"""

import importlib.util
import os
import select
import signal
import sys
import types

# A signal is for the request that runs: until there is one, it must not end the process.
signal.signal(signal.SIGINT, signal.SIG_IGN)
# ipykernel reads it when it is imported: the kernel ends when this process has gone.
os.environ["JPY_PARENT_PID"] = str(os.getppid())
# As IPython parallel's engine sets it: no warnings of a debugger that nobody uses.
os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")


def lack(module):
    """Tells the engine, in a file, which module there is not: it says so, once for all of its kernels."""
    directory = os.path.dirname(sys.argv[sys.argv.index("-f") + 1])
    with open(os.path.join(directory, "lacking"), "w") as file:
        file.write(module)
    sys.exit(1)


try:
    import ipyparallel
    from ipykernel.iostream import OutStream
    from ipykernel.kernelapp import IPKernelApp, kernel_aliases
    from ipyparallel.engine.kernel import IPythonParallelKernel
    from jupyter_client import session
    from tornado.ioloop import IOLoop
    from traitlets import Unicode
except ModuleNotFoundError as error:
    lack(error.name)
if "--Session.packer=msgpack" in sys.argv and importlib.util.find_spec("msgpack") is None:
    lack("msgpack")

ID = int(os.environ["IPBROKER_ENGINE_ID"])
UUID = os.environ["IPBROKER_ENGINE_UUID"]


class Session(session.Session):
    """Names the engine in the metadata of every message, and counts them."""

    sent = 0

    def send(self, stream, msg_or_type, content=None, parent=None, ident=None, buffers=None, track=False, header=None, metadata=None):
        metadata = {"engine": UUID, **(metadata or {})}
        self.sent += 1
        return super().send(stream, msg_or_type, content, parent, ident, buffers, track, header, metadata)


class Output(OutStream):
    """Waits for its thread, four times a request, only when there is something to send."""

    def flush(self):
        if self._flush_pending or (self._fid is not None and select.select([self._fid], [], [], 0)[0]):
            super().flush()


class Kernel(IPythonParallelKernel):
    """Runs calls without what cells need: a task of the event loop's, and two messages about the kernel's state."""

    before = None  # messages sent before the call that runs

    def __init__(self, **given):
        super().__init__(engine_id=ID, ident=UUID, **given)

    def start(self):
        stream = self.shell_stream
        on_recv = stream.on_recv
        stream.on_recv = lambda usual, copy: on_recv(lambda frames: self.called(frames) or usual(frames), copy=copy)
        super().start()
        del stream.on_recv

    def called(self, frames):
        """Runs what the frames ask for, if that is a call; false: it is something else."""
        idents, rest = self.session.feed_identities(frames, copy=False)
        if self.session.unpack(rest[1].bytes)["msg_type"] != "apply_request":
            return False
        request = self.session.deserialize(rest, copy=False)
        self.set_parent(idents, request, channel="shell")
        told = False
        # Past the stream, which would queue the reply.
        socket = self.shell_stream.socket
        if self.should_handle(socket, request, idents):
            self.before = self.session.sent
            try:
                self.pre_handler_hook()
                self.apply_request(socket, idents, request)
                told = self.before is None
            except (Exception, KeyboardInterrupt):
                # The engine is told of the end, and sees that there is no reply.
                self.log.exception("the reply to a call could not be sent")
            finally:
                self.before = None
                self.post_handler_hook()
        if not told:
            self._publish_status("idle", "shell")
        return True

    def finish_metadata(self, parent, metadata, reply_content):
        """Of a call that has published nothing, its reply says so: then it is the engine that publishes its end."""
        metadata = super().finish_metadata(parent, metadata, reply_content)
        if self.before is not None:
            sys.stdout.flush()
            sys.stderr.flush()
            if self.session.sent == self.before:
                metadata["quiet"], self.before = True, None
        return metadata


class IPEngine(IPKernelApp):
    """Its name is that of the section and of the file in which engines are configured."""

    name = "ipengine"
    kernel_class = Kernel
    outstream_class = f"{__name__}.{Output.__name__}"
    startup_command = Unicode("", config=True, help="a command to run at startup")
    startup_script = Unicode("", config=True, help="a script to run at startup")
    aliases = {**kernel_aliases, "c": "IPEngine.startup_command", "s": "IPEngine.startup_script"}

    def _session_default(self):
        return Session(parent=self)

    def init_control(self, context):
        super().init_control(context)
        # Requests come one by one: no thread between the socket and the kernel (ipykernel 7 has one for subshells).
        self.shell_channel_thread = None

    def init_kernel(self):
        super().init_kernel()
        for channel, topic in [(sys.stdout, "stdout"), (sys.stderr, "stderr"), (sys.displayhook, "execute_result")]:
            channel.topic = self.kernel._topic(topic)
        self.kernel.shell.display_pub.topic = self.kernel._topic("displaypub")

    def init_code(self):
        self.exec_lines += [self.startup_command] if self.startup_command else []
        self.exec_files += [self.startup_script] if self.startup_script else []
        super().init_code()


def worker():
    """What runs the engine's Python calls: it comes over the standard input, as they do."""
    module = sys.modules["_ipbroker_worker"] = types.ModuleType("_ipbroker_worker")
    with open(0, "rb", closefd=False) as file:
        source = file.read(int.from_bytes(file.read(4), "little"))
    exec(compile(source, "<worker of ipengine>", "exec"), module.__dict__)
    return module


def main():
    calls = worker() if "IPBROKER_CALLS" in os.environ else None
    # Times in messages are for others: reading them takes longer than the rest of a message.
    session.extract_dates = lambda message: message
    # A kernel of its own has its sockets open.
    ipyparallel.bind_kernel = lambda **options: None
    engine = IPEngine.instance()
    engine.config.HistoryManager.hist_file = ":memory:"
    if "IPP_PROFILE_DIR" in os.environ:
        engine.config.ProfileDir.location = os.environ["IPP_PROFILE_DIR"]
    engine.initialize()
    # Five records a request, of which the handler throws away all, are not made.
    engine.log.setLevel(engine.log_level)
    if calls is not None:
        calls.attach(IOLoop.current())
    engine.start()


main()
