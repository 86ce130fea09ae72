"""ipbroker.compat beside the packages whose programs it runs: the same programs, in turn, two workers each.

    python -m venv /tmp/peers && /tmp/peers/bin/pip install setuptools scoop dispy 'ppft[dill]'
    python compat_bench.py /tmp/peers/bin/python [MB]

The Python that runs this has ipbroker. MB: the size of the texts whose words are counted (default 20).
"""

import contextlib
import os
import random
import re
import subprocess
import sys
import tempfile
import time

import programs

SCOOP_NOOP = """
import sys, time
{line}
def noop(x):
    return x
if __name__ == "__main__":
    count = int(sys.argv[1])
    list(futures.map(noop, range(200)))
    begin = time.time()
    assert len(list(futures.map(noop, range(count)))) == count
    mapped = count / (time.time() - begin)
    begin = time.time()
    calls = [futures.submit(noop, x) for x in range(count)]
    assert sum(call.result() for call in calls) == sum(range(count))
    print("BENCH", mapped, count / (time.time() - begin))
"""

SCOOP_TREE = """
import time
{line}
def tree(level):
    return 1 if level == 0 else sum(futures.map(tree, [level - 1] * 2))
if __name__ == "__main__":
    begin = time.time()
    assert tree(12) == 4096
    print("BENCH", time.time() - begin)
"""

SCOOP_WORDS = """
import sys, time, collections
{line}
def words(name):
    found = collections.Counter()
    with open(name) as file:
        for line in file:
            found.update(line.lower().split())
    return found
if __name__ == "__main__":
    # SCOOP shares tasks out by how long they took before: these are like those that are measured.
    list(futures.map(words, sys.argv[1:5]))
    begin = time.time()
    found = collections.Counter()
    for part in futures.map(words, sys.argv[1:]):
        found.update(part)
    print("BENCH", time.time() - begin, sum(found.values()))
"""

PP_NOOP = """
import sys, time
{line}
def noop(x):
    return x
if __name__ == "__main__":
    count = int(sys.argv[1])
    server = pp.Server(2)
    for job in [server.submit(noop, (x,)) for x in range(200)]:
        job()
    begin = time.time()
    jobs = [server.submit(noop, (x,)) for x in range(count)]
    assert sum(job() for job in jobs) == sum(range(count))
    print("BENCH", count / (time.time() - begin))
"""

DISPY_NOOP = """
import sys, time
{line}
def noop(x):
    return x
if __name__ == "__main__":
    count = int(sys.argv[1])
    cluster = dispy.JobCluster(noop, nodes=["localhost"], host="localhost")
    for job in [cluster.submit(x) for x in range(20)]:
        job()
    begin = time.time()
    jobs = [cluster.submit(x) for x in range(count)]
    for job in jobs:
        job()
    spent = time.time() - begin
    # dispy's nodes lose some.
    print("BENCH", sum(job.status == dispy.DispyJob.Finished for job in jobs) / spent)
    cluster.close()
"""

DISPY_WORDS = """
import sys, time, collections
{line}
def words(name):
    import collections
    found = collections.Counter()
    with open(name) as file:
        for line in file:
            found.update(line.lower().split())
    return found
if __name__ == "__main__":
    cluster = dispy.JobCluster(words, nodes=["localhost"], host="localhost")
    for job in [cluster.submit(name) for name in sys.argv[1:5]]:
        job()
    begin = time.time()
    found = collections.Counter()
    for job in [cluster.submit(name) for name in sys.argv[1:]]:
        found.update(job())
    print("BENCH", time.time() - begin, sum(found.values()))
    cluster.close()
"""

NATIVE_WORDS = """
import sys, time
import ipbroker
from count import file_to_words, count_words
if __name__ == "__main__":
    with ipbroker.Cluster(n=2) as cluster:
        list(cluster.client().view().map(file_to_words, ["/dev/null"] * 200))
        begin = time.time()
        found = cluster.client().view().map_reduce(file_to_words, count_words, sys.argv[1:])
        print("BENCH", time.time() - begin, sum(count for _, count in found))
"""

OURS, PEERS = "ipbroker", "published"
LIMIT = 300
"""Seconds that a program may take: some of them never end."""


def run(place, name, text, command):
    """Runs a program in a directory of its own; the numbers that it prints, and how long all of it took."""
    where = os.path.join(place, name)
    os.makedirs(where, exist_ok=True)
    for file, content in text.items():
        with open(os.path.join(where, file), "w") as out:
            out.write(content)
    begin = time.time()
    try:
        done = subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        print(f"{name}: it has not ended after {LIMIT} s", file=sys.stderr)
        return None, LIMIT
    spent = time.time() - begin
    found = re.search(r"^BENCH (.*)$", done.stdout, re.M)
    if done.returncode:
        print(f"{name}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None, spent
    return [float(number) for number in found[1].split()] if found else [], spent


@contextlib.contextmanager
def node(who, python, place):
    """What dispy's jobs run on: its node of two processors, here; ours need none."""
    if who == OURS:
        yield
        return
    command = [python, os.path.join(os.path.dirname(python), "dispynode.py"), "-c", "2", "-i", "localhost", "--daemon", "--clean", "--dest_path_prefix", os.path.join(place, "node")]
    with open(os.path.join(place, "node.log"), "w+") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=place)
        try:
            while process.poll() is None and "serving" not in open(log.name).read():
                time.sleep(0.1)
            yield
        finally:
            process.kill()
            process.wait()


def corpus(place, megabytes):
    """Files of a megabyte, of words that are as frequent as words are."""
    chance = random.Random(7)
    words = ["".join(chance.choices("etaoinshrdlu", k=chance.randint(2, 11))) for _ in range(20_000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    names = []
    for at in range(megabytes):
        names.append(os.path.join(place, f"{at}.txt"))
        with open(names[-1], "w") as file:
            size = 0
            while size < 1_000_000:
                line = " ".join(chance.choices(words, weights, k=5_000))
                size += file.write(line.replace(" the ", ", the ") + ".\n")
    return names


def show(what, unit, values, more=True):
    """A line: the two figures, and how much better ours is."""
    ours, peer = values.get(OURS), values.get(PEERS)
    ratio = "" if not ours or not peer else f"   {ours / peer if more else peer / ours:.1f}"
    cell = lambda value: "–" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.2f}"  # noqa: E731
    print(f"{what:44} {cell(ours):>9} {cell(peer):>9} {unit}{ratio}", flush=True)


def main():
    peers = sys.argv[1]
    megabytes = int(sys.argv[2]) if len(sys.argv) > 2 else 20
    launchers = {OURS: [sys.executable, "-m", "ipbroker.compat.scoop"], PEERS: [peers, "-m", "scoop"]}
    lines = {OURS: "from ipbroker.compat.scoop import futures", PEERS: "from scoop import futures"}
    pythons = {OURS: sys.executable, PEERS: peers}
    pps = {OURS: "from ipbroker.compat import pp\n", PEERS: "import ppft as pp\n"}
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}{'':18} {OURS:>9} {PEERS:>9}")
    with tempfile.TemporaryDirectory() as place:
        os.mkdir(os.path.join(place, "texts"))
        names = corpus(os.path.join(place, "texts"), megabytes)

        both = {who: run(place, f"noop-{who}", {"p.py": SCOOP_NOOP.format(line=lines[who])}, [*launchers[who], "-n", "2", "p.py", "5000"])[0] for who in pythons}
        show("SCOOP: futures.map, 5,000 no-op calls", "calls/s", {who: found and found[0] for who, found in both.items()})
        show("SCOOP: futures.submit, 5,000 no-op calls", "calls/s", {who: found and found[1] for who, found in both.items()})
        both = {who: run(place, f"tree-{who}", {"p.py": SCOOP_TREE.format(line=lines[who])}, [*launchers[who], "-n", "2", "p.py"])[0] for who in pythons}
        show("SCOOP: a tree of tasks of depth 12", "s", {who: found and found[0] for who, found in both.items()}, more=False)
        imports = {OURS: "from ipbroker.compat import scoop\n", PEERS: "import scoop\n"}
        spent = {who: run(place, f"document-{who}", {"scoop_test.py": programs.scoop_test(imports[who])}, [*launchers[who], "-n", "16", "scoop_test.py"]) for who in pythons}
        show("SCOOP: the document's program, -n 16, in all", "s", {who: None if found is None else seconds for who, (found, seconds) in spent.items()}, more=False)
        both = {who: run(place, f"words-{who}", {"p.py": SCOOP_WORDS.format(line=lines[who])}, [*launchers[who], "-n", "2", "p.py", *names])[0] for who in pythons}
        show(f"SCOOP: word count, {megabytes} MB", "s", {who: found and found[0] for who, found in both.items()}, more=False)

        def dispy(who, name, text, *arguments):
            # A node that has lost a job takes no others: each program has one of its own.
            with node(who, pythons[who], place):
                return run(place, f"dispy{name}-{who}", {"p.py": text}, [pythons[who], "p.py", *arguments])

        imports = {OURS: "ipbroker.compat.dispy as dispy", PEERS: "dispy"}
        both = {who: dispy(who, "noop", DISPY_NOOP.format(line=f"import {imports[who]}"), "500")[0] for who in pythons}
        show("dispy: 500 no-op jobs", "jobs/s", {who: found and found[0] for who, found in both.items()})
        # The same pauses; and dispy finds no address where there is no network.
        document = {who: "import random\nrandom.seed(5)\n" + programs.dispy(imports[who]).replace("nodes=['localhost']", "nodes=['localhost'], host='localhost'") for who in pythons}
        spent = {who: dispy(who, "document", document[who]) for who in pythons}
        show("dispy: the document's program, in all", "s", {who: None if found is None else seconds for who, (found, seconds) in spent.items()}, more=False)
        both = {who: dispy(who, "words", DISPY_WORDS.format(line=f"import {imports[who]}"), *names)[0] for who in pythons}
        show(f"dispy: word count, {megabytes} MB", "s", {who: found and found[0] for who, found in both.items()}, more=False)

        both = {who: run(place, f"ppnoop-{who}", {"p.py": PP_NOOP.format(line=pps[who])}, [pythons[who], "p.py", "5000"])[0] for who in pythons}
        show("pp: 5,000 no-op jobs", "jobs/s", {who: found and found[0] for who, found in both.items()})
        spent = {}
        for who in pythons:
            text = {"pp_mapreduce.py": programs.mapreduce(pps[who]), "count.py": programs.wordcount(names)}
            found, spent[who] = run(place, f"count-{who}", text, [pythons[who], "count.py"])
            if found is None:
                spent[who] = None
        show(f"pp: the document's word count, {megabytes} MB, in all", "s", spent, more=False)
        text = {"count.py": programs.wordcount(names).replace("from pp_mapreduce import SimpleMapReduceServer", ""), "p.py": NATIVE_WORDS}
        found, _ = run(place, "native", text, [sys.executable, "p.py", *names])
        show(f"view.map_reduce, the same words, {megabytes} MB", "s", {OURS: found and found[0]}, more=False)


if __name__ == "__main__":
    main()
