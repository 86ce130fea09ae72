"""How fast calls are: ours, and concurrent.futures.ProcessPoolExecutor's, with two workers each.

    python bench.py ours|pool submit|map|trip|array|million COUNT      prints one number: calls/s, ms, MB/s, MB
    python bench.py ours import|cluster                                 … ms, s
"""

import resource
import subprocess
import sys
import time

WORKERS = 2


def noop(x=None):
    return x


def back(array):
    return array


def executor(whose):
    if whose == "pool":
        from concurrent.futures import ProcessPoolExecutor

        return ProcessPoolExecutor(WORKERS)
    import ipbroker

    global cluster
    cluster = ipbroker.Cluster(n=WORKERS)
    return cluster.client().executor()


def submit(ex, count):
    begin = time.perf_counter()
    for future in [ex.submit(noop) for _ in range(count)]:
        future.result()
    return count / (time.perf_counter() - begin)


def map(ex, count, **chunks):
    begin = time.perf_counter()
    assert sum(1 for _ in ex.map(noop, range(count), **chunks)) == count
    return count / (time.perf_counter() - begin)


def trip(ex, count):
    spent = []
    for _ in range(count):
        begin = time.perf_counter()
        ex.submit(noop).result()
        spent.append(time.perf_counter() - begin)
    return sorted(spent)[count // 2] * 1e3


def array(ex, count):
    import numpy

    data = numpy.zeros(100_000_000, dtype="u1")
    ex.submit(back, data).result()
    begin = time.perf_counter()
    for _ in range(count):
        assert ex.submit(back, data).result().nbytes == data.nbytes
    return 2 * count * data.nbytes / 1e6 / (time.perf_counter() - begin)


def million(ex, count):
    def memory():
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1e3

    for _ in ex.map(noop, range(10_000)):
        pass
    before = memory()
    for _ in ex.map(noop, range(count)):
        pass
    return memory() - before


def main():
    global cluster
    whose, what, *more = sys.argv[1:]
    if what == "import":
        seconds = "import time; t = time.perf_counter(); import ipbroker; print(time.perf_counter() - t)"
        spent = [float(subprocess.check_output([sys.executable, "-c", seconds])) for _ in range(7)]
        return print(sorted(spent)[3] * 1e3)
    if what == "cluster":
        begin = time.perf_counter()
        import ipbroker

        with ipbroker.Cluster(n=4) as cluster:
            assert cluster.client().submit(pow, 2, 3).result() == 8
            return print(time.perf_counter() - begin)
    ex = executor(whose)
    try:
        # Whatever starts at the first call has started.
        for future in [ex.submit(noop) for _ in range(200)]:
            future.result()
        chunks = {"chunksize": 100} if (whose, what) == ("pool", "map") else {}
        print(globals()[what](ex, int(more[0]), **chunks))
    finally:
        ex.shutdown()
        if whose == "ours":
            cluster.close()


if __name__ == "__main__":
    main()
