"""The commands by which ipyparallel's launchers start controllers and engines, replaced by ours."""

import os
import sys


def engine():
    """The command of an engine: `$IPENGINE` with ipyparallel's kernel in it, or the peer's own."""
    ours = os.environ.get("IPENGINE")
    if not ours:
        return [sys.executable, "-m", "ipyparallel.engine"]
    # As the peer's engines, these end when their interpreter does: its tests wait for their ids to go.
    return [ours, "--kernel=ipyparallel", f"--python={sys.executable}", "--kernel-restarts=0"]


def replace(launcher):
    """In the module `ipyparallel.cluster.launcher`: `$IPCTL` in place of `ipcontroller`, `$IPENGINE` in place of its engines."""
    if os.environ.get("IPCTL"):
        put(launcher.ipcontroller_cmd_argv, launcher.ControllerLauncher.controller_cmd, [os.environ["IPCTL"]])
    if os.environ.get("IPENGINE"):
        put(launcher.ipengine_cmd_argv, launcher.EngineLauncher.engine_cmd, engine())


def put(argv, trait, command):
    # In place: others have imported the list.
    argv[:] = command
    trait.default_args = (list(command),)
