"""What calls print reaches the caller."""

import time

import calls
import ipbroker


def test_prints_come_as_they_happen(client, capfd):
    def slowly():
        import time

        print("one", flush=True)
        time.sleep(5)
        print("two")

    future = client.submit(slowly)
    end = time.monotonic() + 30
    text = ""
    while "one" not in text:
        assert not future.done() and time.monotonic() < end
        text += capfd.readouterr().out
        time.sleep(0.02)
    assert "two" not in text
    future.result(60)
    assert capfd.readouterr().out.endswith("two\n")


def test_all_is_printed_before_the_result_is_there(client, capfd):
    for at in range(20):
        client.submit(calls.say, f"number {at}").result(30)
        out, err = capfd.readouterr()
        assert (out, err) == (f"number {at}\n", f"NUMBER {at}\n")


def test_all_that_the_last_try_printed_is_printed_before_the_result_is_there(client, capfd, tmp_path):
    def twice(at):
        first = tmp_path / str(at)
        print(f"try {2 if first.exists() else 1} of {at}")
        if not first.exists():
            first.touch()
            print("it fails, and says more of it than the next one")
            raise ValueError

    view = client.view(retries=1)
    last = []
    for at in range(20):
        view.submit(twice, at).result(30)
        last.append(f"try 2 of {at}\n" in capfd.readouterr().out)
    assert all(last), last


def test_all_of_a_map_is_printed_before_its_results_are_there(client, capfd):
    words = [f"number {at}" for at in range(7)]
    for chunksize in (None, 1, 3):
        for _ in range(10):
            assert list(client.view().map(calls.say, words, chunksize=chunksize)) == [8] * 7
            out, err = capfd.readouterr()
            # Those of two engines may come between each other.
            assert [out.count(word) for word in [*words, "\n"]] == [1] * 7 + [7]
            assert [err.count(word.upper()) for word in [*words, "\n"]] == [1] * 7 + [7]


def test_what_a_map_prints_does_not_make_its_replies_too_large(capfd):
    def much(number):
        print("x" * 50_000)
        return number

    with ipbroker.Cluster(n=1, options=["--max-message=1M"]) as cluster, cluster.client() as client:
        same = list(client.view().map(much, range(200), chunksize=1)) == list(range(200))
    assert same and capfd.readouterr().out.count("x") == 10_000_000


def test_a_stream_that_cannot_be_written_to_holds_nothing_up(client, monkeypatch):
    class Gone:
        def write(self, text):
            raise RuntimeError("the widget has been deleted")

    monkeypatch.setattr("sys.stdout", Gone())
    assert client.submit(calls.say, "lost").result(30) == 4
    assert client.submit(calls.say, "lost").result(30) == 4


def test_an_engine_rests_while_a_call_that_has_closed_its_outputs_runs():
    def close():
        import os
        import time

        def used():
            """Seconds of the processor that the engine has used."""
            with open(f"/proc/{os.getppid()}/stat") as file:
                return sum(map(int, file.read().rsplit(")", 1)[1].split()[11:13])) / os.sysconf("SC_CLK_TCK")

        os.close(1)
        os.close(2)
        before = used()
        time.sleep(2)
        return used() - before

    with ipbroker.Cluster(n=1) as cluster, cluster.client() as client:
        assert client.submit(close).result(60) < 1


def test_a_flood_is_cut_and_the_call_ends(client, capfd):
    def flood():
        line = "x" * 999_999
        for _ in range(100):
            print(line)
        return "done"

    future = client.submit(flood)
    assert future.result(100) == "done"
    assert 0 < len(future.info.stdout) <= 70_000
    assert client.submit(calls.square, 3).result(30) == 9
    # The last of it may come behind the result.
    text, end = "", time.monotonic() + 30
    while not text.endswith("more bytes of this call's output are left out]\n"):
        assert time.monotonic() < end
        text += capfd.readouterr().out
        time.sleep(0.02)
    shown, left_out = text.rsplit("\n[ipbroker: ", 1)
    assert len(shown) + int(left_out.split()[0]) == 100_000_000
