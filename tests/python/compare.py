"""The same Python client and two Python engines on `ipcontroller` and on `ipctl`, side by side.

    python tests/python/compare.py [--tasks 100000] [--trips 2000] [--rounds 3] [--json]

Prints a table: task throughput, round trip, time to connect, memory of the controller after the tasks. Rounds
alternate between the two; the table has their medians.
"""

import argparse
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


def controllers():
    """Name and command of each; both keep their history in memory, as is ipcontroller's default."""
    return {
        "ipcontroller": [sys.executable, "-m", "ipyparallel.controller", "--dictdb"],
        "ipctl": [find_ipctl(), "--dictdb"],
        "ipctl (store)": [find_ipctl()],
    }


def nothing():
    pass


def memory(process):
    """Resident bytes (shared pages counted once) of a process and its children."""
    family = [process, *process.children(recursive=True)]
    return sum(one.memory_full_info().pss for one in family)


def measure(command, tasks, trips):
    """One controller, from nothing to nothing."""
    figures = {}
    with tempfile.TemporaryDirectory() as directory:
        profile = Path(directory) / "profile_compare"
        env = {key: value for key, value in os.environ.items() if not key.startswith("IPP_")}
        env["IPYTHONDIR"] = directory
        log = open(Path(directory) / "log", "wb")
        started = time.perf_counter()
        controller = subprocess.Popen([*command, f"--profile-dir={profile}"], env=env, stdout=log, stderr=log)
        engines = []
        try:
            file = profile / "security" / "ipcontroller-client.json"
            engine_file = file.with_name("ipcontroller-engine.json")
            while not (file.exists() and engine_file.exists()):
                if controller.poll() is not None:
                    raise RuntimeError(f"{command[0]} ended: {(Path(directory) / 'log').read_text()}")
                time.sleep(0.005)
            figures["controller ready (s)"] = time.perf_counter() - started
            command = [sys.executable, "-m", "ipyparallel.engine", f"--profile-dir={profile}"]
            engines = [subprocess.Popen(command, env=env, stdout=log, stderr=log) for _ in range(2)]
            with ipp.Client(str(file), timeout=30) as rc:
                rc.wait_for_engines(2, timeout=60)
                connecting = []
                for _ in range(10):
                    started = time.perf_counter()
                    ipp.Client(str(file), timeout=30).close()
                    connecting.append(time.perf_counter() - started)
                figures["connect (ms)"] = 1000 * statistics.median(connecting)
                view = rc.load_balanced_view()
                view.apply_sync(nothing)
                times = []
                for _ in range(trips):
                    started = time.perf_counter()
                    view.apply_sync(nothing)
                    times.append(time.perf_counter() - started)
                times.sort()
                figures["round trip p50 (ms)"] = 1000 * times[len(times) // 2]
                figures["round trip p99 (ms)"] = 1000 * times[len(times) * 99 // 100]
                before = memory(psutil.Process(controller.pid))
                spent = 0.0
                for first in range(0, tasks, 1000):
                    batch = min(1000, tasks - first)
                    started = time.perf_counter()
                    results = [view.apply_async(nothing) for _ in range(batch)]
                    rc.wait(results, timeout=600)
                    spent += time.perf_counter() - started
                figures["tasks/s"] = tasks / spent
                after = memory(psutil.Process(controller.pid))
                figures["memory before (MB)"] = before / 1e6
                figures["memory after (MB)"] = after / 1e6
        finally:
            for process in [*engines, controller]:
                process.terminate()
            for process in [*engines, controller]:
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
            log.close()
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=100_000, help="tasks for throughput and memory")
    parser.add_argument("--trips", type=int, default=2000, help="round trips, one at a time")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rounds = {name: [] for name in controllers()}
    for _ in range(options.rounds):
        for name, command in controllers().items():
            rounds[name].append(measure(command, options.tasks, options.trips))
            print(f"{name}: {rounds[name][-1]}", file=sys.stderr)
    table = {
        name: {key: statistics.median(figures[key] for figures in all_) for key in all_[0]}
        for name, all_ in rounds.items()
    }
    if options.json:
        print(json.dumps({"tasks": options.tasks, "rounds": options.rounds, "table": table}, indent=2))
        return
    keys = list(next(iter(table.values())))
    print(f"{options.tasks} tasks, two Python engines, median of {options.rounds} round(s)\n")
    print("| | " + " | ".join(table) + " |")
    print("|---|" + "---:|" * len(table))
    for key in keys:
        print(f"| {key} | " + " | ".join(f"{row[key]:.2f}" for row in table.values()) + " |")


if __name__ == "__main__":
    main()
