"""The same Python client and two Python engines on `ipcontroller` and on `ipctl`, side by side.

    python tests/peer/compare.py [--tasks 5000] [--trips 1000] [--rounds 3] [--memory-tasks 100000] [--only NAME…] [--json]

Prints a table: task throughput, round trip, time to connect, processor time and memory of the controller. Rounds
alternate between the controllers; the table has their medians, and in brackets the least and the most. Memory is
measured once each, after `--memory-tasks` tasks (0: not at all).
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

import ipyparallel as ipp

from ipctl_plugin import find_ipctl

# Tasks in flight.
BATCH = 1000


def controllers():
    """Name and command of each; the first two keep their history in memory, as is ipcontroller's default."""
    return {
        "ipcontroller": [sys.executable, "-m", "ipyparallel.controller", "--dictdb"],
        "ipctl": [find_ipctl(), "--dictdb"],
        "ipctl, store": [find_ipctl()],
    }


def nothing():
    pass


def family(process):
    return [process, *process.children(recursive=True)]


def memory(process):
    """Resident bytes (shared pages counted once) of a process and its children, in MB."""
    return sum(one.memory_full_info().pss for one in family(process)) / 1e6


def processor_time(process):
    """Seconds of processor time of a process and its children."""
    times = [one.cpu_times() for one in family(process)]
    return sum(one.user + one.system for one in times)


def timed(action):
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


@contextlib.contextmanager
def cluster(command):
    """A controller and two engines in a profile of their own: process, connection file, client, seconds to be ready."""
    with tempfile.TemporaryDirectory() as directory, open(Path(directory) / "output", "wb") as log:
        profile = Path(directory) / "profile_compare"
        env = {key: value for key, value in os.environ.items() if not key.startswith("IPP_")}
        env["IPYTHONDIR"] = directory
        started = time.perf_counter()
        controller = subprocess.Popen([*command, f"--profile-dir={profile}"], env=env, stdout=log, stderr=log)
        processes = [controller]
        try:
            file = profile / "security" / "ipcontroller-client.json"
            engine_file = file.with_name("ipcontroller-engine.json")
            while not (file.exists() and engine_file.exists()):
                if controller.poll() is not None:
                    raise RuntimeError(f"{command[0]} ended: {(Path(directory) / 'output').read_text()}")
                time.sleep(0.005)
            ready = time.perf_counter() - started
            engine = [sys.executable, "-m", "ipyparallel.engine", f"--profile-dir={profile}"]
            processes = [subprocess.Popen(engine, env=env, stdout=log, stderr=log) for _ in range(2)] + processes
            with ipp.Client(str(file), timeout=60) as rc:
                rc.wait_for_engines(2, timeout=120)
                # Engines import what they need with their first task.
                rc[:].apply_sync(nothing)
                yield psutil.Process(controller.pid), file, rc, ready
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()


def submit(rc, view, tasks):
    """Runs tasks, a thousand in flight."""
    for first in range(0, tasks, BATCH):
        results = [view.apply_async(nothing) for _ in range(min(BATCH, tasks - first))]
        rc.wait(results, timeout=600)


def speed(command, tasks, trips):
    """One round: figures by name."""
    with cluster(command) as (controller, file, rc, ready):
        connecting = [timed(lambda: ipp.Client(str(file), timeout=60).close()) for _ in range(40)]
        view = rc.load_balanced_view()
        submit(rc, view, 200)
        times = sorted(timed(lambda: view.apply_sync(nothing)) for _ in range(trips))
        used = processor_time(controller)
        spent = timed(lambda: submit(rc, view, tasks))
        used = processor_time(controller) - used
        return {
            "tasks/s": tasks / spent,
            "round trip p50 (ms)": 1000 * times[len(times) // 2],
            "round trip p99 (ms)": 1000 * times[len(times) * 99 // 100],
            "connect (ms)": 1000 * statistics.median(connecting),
            "controller ready (ms)": 1000 * ready,
            "controller, processor time a task (ms)": 1000 * used / tasks,
        }


def growth(command, tasks):
    """Memory of the controller before and after: figures by name."""
    with cluster(command) as (controller, _, rc, _):
        before = memory(controller)
        view = rc.load_balanced_view()
        for first in range(0, tasks, BATCH):
            submit(rc, view, min(BATCH, tasks - first))
            # The client keeps every result: its memory is not what is measured.
            rc.purge_local_results("all")
        return {"memory, idle (MB)": before, f"memory after {tasks:,} tasks (MB)": memory(controller)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=5000, help="tasks for throughput, a thousand in flight")
    parser.add_argument("--trips", type=int, default=1000, help="round trips, one at a time")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-tasks", type=int, default=100_000, help="tasks for memory; 0: leave it out")
    parser.add_argument("--only", nargs="+", choices=controllers(), help="some of the controllers")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    commands = {name: command for name, command in controllers().items() if not options.only or name in options.only}
    rounds = {name: [] for name in commands}
    for _ in range(options.rounds):
        for name, command in commands.items():
            rounds[name].append(speed(command, options.tasks, options.trips))
            print(f"{name}: {rounds[name][-1]}", file=sys.stderr)
    table = {name: {} for name in rounds}
    for name, all_ in rounds.items():
        for key in all_[0] if all_ else ():
            table[name][key] = [figures[key] for figures in all_]
    if options.memory_tasks:
        for name, command in commands.items():
            for key, value in growth(command, options.memory_tasks).items():
                table[name][key] = [value]
            print(f"{name}: {table[name]}", file=sys.stderr)
    if options.json:
        print(json.dumps({"options": vars(options), "table": table}, indent=2))
        return
    if options.rounds:
        print(f"{options.tasks:,} tasks, {options.trips:,} round trips, two Python engines, median of {options.rounds} rounds\n")
    print("| | " + " | ".join(table) + " |")
    print("|---|" + "---:|" * len(table))
    for key in next(iter(table.values())):
        cells = []
        for row in table.values():
            values = row[key]
            digits = 0 if max(values) >= 100 else 1 if max(values) >= 10 else 2
            spread = f" ({min(values):.{digits}f}–{max(values):.{digits}f})" if len(values) > 1 else ""
            cells.append(f"{statistics.median(values):,.{digits}f}{spread}")
        print(f"| {key} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
