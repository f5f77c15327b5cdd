"""The soak: it finds what it is meant to find, and the server stands a short one.

The long ones: `pytest -m slow -s tests/benchmarks/test_soak.py` (a minute, or POMONA_SOAK_SECONDS), and
`python -m benchmarks.soak` (half an hour on the real model).
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_load import serving
from test_serving_benchmark import CONFIG

from benchmarks import soak as program
from benchmarks.load import Connection, Reply
from benchmarks.soak_clients import Answers, Shelf, Soak, Tally, _Asked, judge
from benchmarks.soak_hostile import HOSTILE
from benchmarks.soak_watch import Watch
from pomona.models.random_init import random_model

NOW = 100.0


class TestShelf:
    def shelf(self) -> Shelf:
        """`red` is directory 1 from 10 to 20, or to 21 at the latest, then 2, from 30 to 31 on nothing."""
        shelf = Shelf()
        for began, ended, directory, version in ((9, 10, 1, 1), (20, 21, 2, 2), (30, 31, None, None)):
            change = shelf.begin("red", directory)
            change.began, change.ended, change.version = float(began), float(ended), version
        return shelf

    @pytest.mark.parametrize(
        ("start", "end", "possible"),
        [
            (11, 19, {1}),
            (11, 20.5, {1, 2}),  # the change was under way
            (20.5, 25, {1, 2}),
            (21.5, 25, {2}),
            (5, 9.5, {None, 1}),
            (22, 40, {2, None}),
            (32, 40, {None}),
        ],
    )
    def test_a_name_may_have_stood_for_what_overlaps(
        self, start: float, end: float, possible: set[int | None]
    ) -> None:
        assert self.shelf().between("red", start, end) == possible

    def test_the_version_that_a_reply_names_decides_between_them(self) -> None:
        assert self.shelf().between("red", 11, 25, 2) == {2}
        assert self.shelf().between("red", 11, 19, 2) == set()
        assert self.shelf().between("blue", 0, 99) == {None}

    def test_a_change_that_is_not_done_counts_with_what_was_before(self) -> None:
        shelf = self.shelf()
        shelf.begin("red", 5)
        assert shelf.between("red", time.perf_counter(), time.perf_counter()) == {None, 5}


class TestJudge:
    """`red` is directory 1; directory 0 says "zero", 1 "one" and 2 "two", the base "base"."""

    @pytest.fixture
    def state(self) -> Soak:
        texts: dict[tuple[int | None, int, int], str] = {
            (number, 0, 4): word for number, word in ((None, "base"), (0, "zero"), (1, "one"), (2, "two"))
        }
        shelf = Shelf()
        change = shelf.begin("red", 1)
        change.began, change.ended, change.version = 1.0, 2.0, 1
        server: Any = None
        return Soak(server, Answers(texts), [], Tally(), shelf, 0.0, "small")

    def judged(self, state: Soak, reply: Reply, name: str | None = "red") -> Tally:
        asked = _Asked(0, 4, name, b"", stream=reply.body == b"")
        asyncio.run(judge(state, asked, NOW, reply, "streamed"))
        return state.tally

    def reply(self, text: str, adapter: str | None = "red", version: int | None = 1, **fields: Any) -> Reply:
        values = {"whole": True, "finish_reason": "length", **fields}
        return Reply(200, {}, NOW, times=[NOW + 1], pieces=[text], adapter=(adapter, version), **values)

    def test_the_right_text_is_right(self, state: Soak) -> None:
        tally = self.judged(state, self.reply("one"))
        assert (tally.wrong, tally.lost) == ([], [])
        assert tally.counts() == {"requests: answered, streamed": 1}
        assert self.judged(state, self.reply("base", None, None), None).wrong == []

    @pytest.mark.parametrize(
        "reply",
        [
            ("two", "red", 1),  # of another directory
            ("base", "red", 1),  # of the base alone
            ("one", "blue", 1),  # of another adapter, as it says itself
            ("one", "red", 2),  # of a version that there has not been
            ("on", "red", 1),  # a piece is missing
        ],
    )
    def test_every_other_text_is_wrong(self, state: Soak, reply: tuple[str, str, int]) -> None:
        assert len(self.judged(state, self.reply(*reply)).wrong) == 1

    @pytest.mark.parametrize(
        "reply",
        [
            Reply(500, {}, NOW, body=b"{}", whole=True),
            Reply(404, {}, NOW, body=b'{"error": {"message": "no red"}}', whole=True),  # it was there
            Reply(200, {}, NOW, times=[NOW], pieces=["one"], adapter=("red", 1)),  # without an end
            Reply(429, {}, NOW, body=b"{}", whole=True),  # without Retry-After
            Reply(200, {}, NOW, times=[NOW], whole=True, failure={"message": "oh"}),
        ],
    )
    def test_a_request_that_is_not_answered_is_lost(self, state: Soak, reply: Reply) -> None:
        assert len(self.judged(state, reply).lost) == 1

    def test_a_refusal_with_a_reason_is_no_loss(self, state: Soak) -> None:
        self.judged(state, Reply(429, {"retry-after": "0"}, NOW, body=b"{}", whole=True))
        state.shelf.begin("red", None).began = NOW
        gone = Reply(404, {}, NOW, ended=NOW + 1, body=b'{"error": {"message": "no red"}}', whole=True)
        self.judged(state, gone)
        assert state.tally.lost == []
        assert sum(state.tally.kinds.values()) == 2


class TestHostile:
    # To half a request there is no answer: its client is gone.
    @pytest.mark.parametrize(
        "nonsense", [n for n in HOSTILE if n.name != "half a request"], ids=lambda nonsense: nonsense.name
    )
    def test_a_server_that_takes_everything_is_found_out(self, nonsense: Any) -> None:
        async def friendly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            await writer.drain()
            while await reader.read(1 << 16):
                pass

        async def ask(port: int) -> str | None:
            async with await Connection.open(port) as connection:
                return await nonsense.send(connection, "small")

        assert "status 200" in (serving(friendly, ask) or "")


class TestWatch:
    def test_growth_is_the_last_third_over_the_second(self) -> None:
        watch = Watch(os.getpid(), 30.0)
        watch.resident = [(at + 0.5, 100 + 10 * (at >= 20) + 900 * (at < 10)) for at in range(30)]
        assert watch.growth() == pytest.approx(1.1)
        watch.resident = watch.resident[:15]
        assert watch.growth() is None

    def test_a_handle_that_stays_open_is_counted(self, tmp_path: Path) -> None:
        gc.collect()  # sockets of other tests
        watch = Watch(os.getpid(), 1.0)
        assert watch.left_open(0.0) == 0
        with (tmp_path / "file").open("w"):
            assert watch.left_open(0.0) == 1
        assert watch.left_open(5.0) == 0


@pytest.fixture(scope="module")
def model(smollm2_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(CONFIG, tmp_path_factory.mktemp("soak") / "small", seed=3, tokenizer_from=smollm2_dir)


Run = Callable[[float], dict[str, Any]]


@pytest.fixture
def run(model: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(seconds: float) -> dict[str, Any]:
        words = ["--minutes", str(seconds / 60), "--clients", "16", "--threads", "1", "--pace", "0.1"]
        code = program.main([*words, "--model", str(model), "--seed", str(random.Random().randrange(1000))])
        report: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert code == 0
        assert all(goal["met"] for goal in report["goals"]), (report["goals"], report["results"]["notes"])
        return report

    return call


def test_five_seconds_of_it(run: Run) -> None:
    counts = run(5.0)["results"]["counts"]
    for kind in ("answered, at once", "answered, streamed", "client vanished", "nonsense, refused"):
        assert counts.get(f"requests: {kind}", 0) > 0, counts
    assert counts["adapters replaced"] > 0, counts


@pytest.mark.slow
def test_a_longer_one(run: Run) -> None:
    seconds = float(os.environ.get("POMONA_SOAK_SECONDS", "60"))
    report = run(seconds)
    print(f"\n{report['results']['counts']}")
    answered = sum(count for kind, count in report["results"]["counts"].items() if "answered" in kind)
    assert answered > 5 * seconds
