"""What the benchmarks share: turns, ratios, goals, output, the peer; and that all of them are run."""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import run_all
from benchmarks.common import (
    BenchmarkError,
    Goal,
    Report,
    Row,
    busy_warning,
    emit,
    format_number,
    interleave,
    machine_facts,
    markdown_section,
    markdown_table,
    median_and_range,
    ratios,
    text_table,
)
from benchmarks.peer import ROOT, Measure, Peer, Setting, series

ROWS: list[Row] = [
    {"measure": "decode", "speed": 481.26, "x": "3.10 (2.95-3.32)"},
    {"measure": "p", "speed": 9.876, "x": ""},
]


def example_report() -> Report:
    return Report(
        "example",
        {"rows": ROWS, "notes": ["on a quiet machine"], "speeds": [1, 2]},
        [Goal("decode", 3.1049, 2.0), Goal("prefill", None, 2.2)],
        machine_facts(),
    )


class TestTurns:
    def test_contestants_take_turns_in_order(self) -> None:
        order: list[str] = []

        def contestant(name: str) -> float:
            order.append(name)
            return float(len(order))

        figures = interleave({name: partial(contestant, name) for name in "ABC"}, rounds=3, settle=0.0)
        assert "".join(order) == "ABCABCABC"
        assert figures == {"A": [1, 4, 7], "B": [2, 5, 8], "C": [3, 6, 9]}

    def test_the_garbage_collector_rests_and_comes_back_even_after_a_failure(self) -> None:
        def fail() -> float:
            assert not gc.isenabled()
            raise BenchmarkError("no")

        assert gc.isenabled()
        with pytest.raises(BenchmarkError):
            interleave({"A": fail}, rounds=1, settle=0.0)
        assert gc.isenabled()

    def test_progress_is_told_before_every_round_and_at_the_end(self) -> None:
        told: list[tuple[int, int]] = []
        interleave({"A": lambda: 1.0}, 2, settle=0.0, on_round=lambda done, total: told.append((done, total)))
        assert told == [(0, 2), (1, 2), (2, 2)]

    def test_no_rounds_are_refused(self) -> None:
        with pytest.raises(ValueError, match="at least one"):
            interleave({"A": lambda: 1.0}, rounds=0)

    def test_ratios_are_taken_round_by_round(self) -> None:
        # A slow second round for both is no change in the ratio; the medians alone would hide that.
        assert ratios([400.0, 100.0, 420.0], [200.0, 50.0, 200.0]) == [2.0, 2.0, 2.1]
        assert median_and_range([2.0, 2.0, 2.1]) == "2.00 (2.00-2.10)"

    def test_rounds_that_do_not_match_are_refused(self) -> None:
        with pytest.raises(ValueError, match="zip"):
            ratios([1.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("goal", "met"),
    [
        (Goal("speed", 2.0, 2.0), True),
        (Goal("speed", 1.999, 2.0), False),
        (Goal("loss", 0.02, 0.03, "<="), True),
        (Goal("loss", 0.04, 0.03, "<="), False),
        (Goal("of numpy", np.float64(2.0), 1.0), True),
        (Goal("unmeasured", None, 0.03, "<="), False),
    ],
)
def test_a_goal_is_met_at_its_bound_and_never_without_a_value(goal: Goal, met: bool) -> None:
    assert goal.met is met
    assert goal.to_json()["met"] is met


class TestOutput:
    def test_the_last_line_is_the_json_object_and_the_file_holds_the_same(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        emit(example_report(), tmp_path / "out.json")
        *shown, last = capsys.readouterr().out.splitlines()
        found = json.loads(last)
        assert list(found) == ["benchmark", "machine", "results", "goals"]
        assert found["goals"] == [
            {"name": "decode", "value": 3.105, "goal": ">= 2", "met": True},
            {"name": "prefill", "value": None, "goal": ">= 2.2", "met": False},
        ]
        assert json.loads((tmp_path / "out.json").read_text()) == found
        text = "\n".join(shown)
        assert "481" in text
        assert "on a quiet machine" in text
        assert "met     decode: 3.10 (goal >= 2)" in text
        assert "MISSED  prefill: not measured (goal >= 2.2)" in text

    def test_text_columns_are_aligned(self) -> None:
        assert text_table(ROWS) == [
            "measure  speed                 x",
            "decode     481  3.10 (2.95-3.32)",
            "p         9.88",
        ]

    def test_markdown_numbers_are_flush_right(self) -> None:
        assert markdown_table(ROWS) == [
            "| measure | speed | x |",
            "|---|---:|---:|",
            "| decode | 481 | 3.10 (2.95-3.32) |",
            "| p | 9.88 |  |",
        ]

    def test_rows_with_different_columns_are_refused(self) -> None:
        with pytest.raises(ValueError, match="same columns"):
            text_table([{"a": 1.0}, {"b": 1.0}])

    def test_no_rows_are_no_table(self) -> None:
        assert text_table([]) == []
        assert markdown_table([]) == []

    @pytest.mark.parametrize(
        ("value", "text"),
        [(0.4242, "0.42"), (9.876, "9.88"), (42.52, "42.5"), (481.26, "481"), (1234.0, "1,234")],
    )
    def test_numbers_have_three_figures_or_all_before_the_point(self, value: float, text: str) -> None:
        assert format_number(value) == text

    def test_a_missed_goal_stays_in_the_markdown_with_its_value(self) -> None:
        report = example_report().to_json()
        section = markdown_section("Example", "python -m benchmarks.example", report, "today, here.")
        assert "| decode: 3.10 (goal >= 2) | yes |" in section
        assert "| prefill: not measured (goal >= 2.2) | **no** |" in section
        assert "\n    python -m benchmarks.example\n" in section


class TestMachine:
    def test_facts_are_json_and_name_no_host(self) -> None:
        import platform

        facts = machine_facts()
        assert facts["cores"] >= 1
        assert facts["memory_gib"] > 0
        assert facts["architecture"]
        text = json.dumps(facts)
        assert len(platform.node()) < 3 or platform.node() not in text

    def test_a_busy_machine_is_named(self) -> None:
        assert busy_warning({"cores": 2, "load_average": 0.2}) is None
        assert busy_warning({"cores": 2, "load_average": None}) is None
        assert "2.5" in (busy_warning({"cores": 2, "load_average": 2.5}) or "")


class TestPeer:
    def test_a_missing_environment_says_what_to_run(self, tmp_path: Path) -> None:
        with pytest.raises(BenchmarkError, match="make bench-setup"):
            Peer(tmp_path / "python", tmp_path / "model.gguf", threads=1)

    def test_a_process_that_dies_is_an_error_not_a_wait(self, tmp_path: Path) -> None:
        (tmp_path / "python").write_text("#!/bin/sh\nexit 3\n")
        (tmp_path / "python").chmod(0o755)
        (tmp_path / "model.gguf").touch()
        with pytest.raises(BenchmarkError, match="ended"):
            Peer(tmp_path / "python", tmp_path / "model.gguf", threads=1)

    def test_the_fastest_attention_is_kept_for_each_measure(self, tmp_path: Path) -> None:
        # A stand-in for the far end: flash attention is slower for decoding, faster for prefill, and several
        # sequences are faster in one cache.
        (tmp_path / "python").write_text(
            f"#!{sys.executable}\n"
            "import json, sys\n"
            "for line in sys.stdin:\n"
            "    r = json.loads(line)\n"
            "    c = r.get('context', {})\n"
            "    slow = c.get('flash') == (r.get('kind') == 'decode')\n"
            "    apart = c.get('sequences') == 8 and not c['unified']\n"
            "    print(json.dumps({'seconds': 1.0 + slow + 2.0 * apart}), flush=True)\n"
        )
        (tmp_path / "python").chmod(0o755)
        (tmp_path / "model.gguf").touch()
        decode, prefill = Measure("d", "decode", 0, 128), Measure("p", "prefill", 0, 512)
        together = Measure("t", "decode", 0, 64, sequences=8)
        with Peer(tmp_path / "python", tmp_path / "model.gguf", threads=1) as peer:
            assert peer.seconds(decode) == 2.0  # before it is asked to choose: flash attention
            assert peer.choose(decode) == Setting(flash=False)
            assert peer.choose(prefill) == Setting(flash=True)
            assert peer.choose(together) == Setting(flash=False, unified=True)
            assert [peer.seconds(measure) for measure in (decode, prefill, together)] == [1.0, 1.0, 1.0]

    def test_all_tokens_of_all_sequences_count(self) -> None:
        together = Measure("t", "decode", 32, 64, sequences=8)
        assert (together.total, together.steps) == (512, 64)
        prefill = Measure("p", "prefill", 0, 512)
        assert (prefill.total, prefill.steps) == (512, 1)

    def test_everyone_gets_the_same_tokens_of_the_vocabulary(self) -> None:
        ids = series(1000, vocabulary=49152)
        assert ids == series(1000, vocabulary=49152)
        assert all(0 <= token < 49152 for token in ids)
        assert len(set(ids)) == 1000
        assert series(8, 49152, start=512) == series(520, 49152)[512:]


class TestRunAll:
    def test_every_benchmark_is_run(self) -> None:
        # A benchmark ends with `emit` or `run_command`, which emits; the other files are parts of one, or
        # write what it needs.
        files = {path.stem: path.read_text() for path in (ROOT / "benchmarks").glob("*.py")}
        ends = re.compile(r"\b(emit|run_command)\(")
        expected = {name for name, text in files.items() if name != "common" and ends.search(text)}
        assert "decode" in expected
        assert {benchmark.module for benchmark in run_all.benchmarks()} == expected

    @pytest.mark.parametrize(
        ("module", "option"),
        [
            *(("decode", "--quick"), ("guided", "--quick"), ("run_all", "--quick")),
            *(("speculation", "--quick"), ("random_model", "--folder")),
            *(("quality", "--ablation"), ("palettize", "--whole")),
            *(("serving", "--skip-peer"), ("soak", "--minutes")),
        ],
    )
    def test_every_program_explains_itself(self, module: str, option: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{module}", "--help"], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert option in done.stdout

    def test_a_section_says_with_what_when_and_on_what(self) -> None:
        when = datetime(2026, 11, 24, tzinfo=UTC)
        broken = run_all.section(run_all.Benchmark("broken", "Broken"), None, quick=True, when=when)
        assert broken == (
            "## Broken\n\n    python -m benchmarks.broken --quick\n\n2026-11-24: failed in this run.\n"
        )
        example = run_all.Benchmark("example", "Example", ("--threads", "2"))
        text = run_all.section(example, example_report().to_json(), quick=True, when=when)
        assert "    python -m benchmarks.example --threads 2 --quick\n\n2026-11-24, " in text
        assert "quick, coarse run" in text

    def test_a_failed_benchmark_is_written_down_and_the_others_stay(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        runs = [run_all.Benchmark(name, name.title()) for name in ("first", "second", "third")]
        ran: list[str] = []

        def run_one(benchmark: run_all.Benchmark, quick: bool) -> dict[str, Any] | None:
            ran.append(benchmark.command(quick))
            return None if benchmark.module == "first" else example_report().to_json()

        monkeypatch.setattr(run_all, "benchmarks", lambda: runs)
        monkeypatch.setattr(run_all, "run_one", run_one)
        output = tmp_path / "BENCHMARKS.md"
        assert run_all.main(["--output", str(output)]) == 1
        before = run_all.sections(output.read_text())
        assert list(before) == ["First", "Second", "Third"]
        assert "failed" in before["First"] and "failed" not in before["Second"]

        ran.clear()
        assert run_all.main(["--output", str(output), "--only", "second", "--", "--threads", "1"]) == 0
        assert ran == ["python -m benchmarks.second --threads 1"]
        after = run_all.sections(output.read_text())
        assert after["First"] == before["First"] and after["Third"] == before["Third"]
        assert "benchmarks.second --threads 1\n" in after["Second"]

    def test_only_what_there_is_can_be_asked_for(self, capsys: pytest.CaptureFixture[str]) -> None:
        for words in (["--only", "nothing"], ["--", "--threads", "1"]):
            with pytest.raises(SystemExit):
                run_all.main(words)
        assert "nothing" in capsys.readouterr().err

    def test_decode_without_a_peer_ends_with_one_line(self, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.decode", "--model", str(tmp_path / "nothing"), "--quick"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1
        assert "nothing" in done.stderr
