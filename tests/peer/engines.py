"""The peer's Python engines and ours with its kernel, on `ipctl`, for the same client, side by side.

    python tests/peer/engines.py [--rounds 3] [--megabytes 500]

Prints a table: calls of a millisecond on two engines, start to registration, memory of eight idle engines, a large array
to four. Rounds alternate; the table has medians, the least and the most in brackets, and the ratio of ours to theirs.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy
import psutil

import ipyparallel as ipp

from compare import memory, timed
from ipctl_plugin import find_ipctl

PATIENCE = 120


def peers(count):
    return [[sys.executable, "-m", "ipyparallel.engine"]] * count


def ours(count):
    program = Path(find_ipctl()).with_name("ipengine")
    return [[str(program), f"-n={count}", "--kernel=ipyparallel", f"--python={sys.executable}"]]


ENGINES = {"ipyparallel's engines": peers, "ipengine --kernel ipyparallel": ours}


def nothing():
    pass


def millisecond():
    import time

    time.sleep(0.001)


@contextlib.contextmanager
def cluster():
    """A controller: a client of it, and how to start engines there."""
    with tempfile.TemporaryDirectory() as directory, open(Path(directory) / "output", "wb") as log:
        profile = Path(directory) / "profile_compare"
        env = {key: value for key, value in os.environ.items() if not key.startswith("IPP_")}
        env["IPYTHONDIR"] = directory
        processes = []

        def start(command):
            processes.append(subprocess.Popen([*command, f"--profile-dir={profile}"], env=env, stdout=log, stderr=log))
            return psutil.Process(processes[-1].pid)

        start([find_ipctl()])
        file = profile / "security" / "ipcontroller-client.json"
        until(file.exists, f"{file}")
        try:
            with ipp.Client(str(file), timeout=PATIENCE) as rc:
                yield rc, start
        finally:
            for process in reversed(processes):
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()


def until(there, what):
    end = time.monotonic() + PATIENCE
    while not there():
        if time.monotonic() > end:
            raise RuntimeError(f"waited {PATIENCE} s in vain for {what}")
        time.sleep(0.002)


def started(rc, start, commands, count):
    """Starts engines; their processes."""
    processes = [start(command) for command in commands]
    until(lambda: len(rc.ids) == count, f"{count} engines")
    return processes


def figures(engines, megabytes):
    """One round: figures by name."""
    found = {}
    with cluster() as (rc, start):
        found["start to registered, one engine (s)"] = timed(lambda: started(rc, start, engines(1), 1))
    with cluster() as (rc, start):
        started(rc, start, engines(2), 2)
        rc[:].apply_sync(nothing)
        view = rc.load_balanced_view()
        rc.wait([view.apply_async(millisecond) for _ in range(100)])
        found["2,000 calls of 1 ms, two engines (s)"] = timed(lambda: rc.wait([view.apply_async(millisecond) for _ in range(2000)]))
    with cluster() as (rc, start):
        processes = started(rc, start, engines(8), 8)
        rc[:].apply_sync(nothing)
        found["memory of eight idle engines (MB)"] = sum(memory(process) for process in processes)
    with cluster() as (rc, start):
        started(rc, start, engines(4), 4)
        rc[:].apply_sync(nothing)
        array = numpy.ones(megabytes * 125_000)
        found[f"{megabytes} MB to each of four engines (s)"] = timed(lambda: rc[:].push({"array": array}, block=True))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=500, help="size of the array")
    options = parser.parse_args()
    rounds = {name: [] for name in ENGINES}
    for _ in range(options.rounds):
        for name, engines in ENGINES.items():
            rounds[name].append(figures(engines, options.megabytes))
            print(f"{name}: {rounds[name][-1]}", file=sys.stderr)
    print("| | " + " | ".join(rounds) + " | ratio |")
    print("|---|" + "---:|" * (len(rounds) + 1))
    for key in rounds[next(iter(rounds))][0]:
        all_ = [[one[key] for one in figures] for figures in rounds.values()]
        medians = [statistics.median(values) for values in all_]
        cells = [f"{median:,.3g} ({min(values):.3g}–{max(values):.3g})" for median, values in zip(medians, all_)]
        print(f"| {key} | " + " | ".join(cells) + f" | {medians[1] / medians[0]:.2f} |")


if __name__ == "__main__":
    main()
