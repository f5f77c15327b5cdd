"""benchmarks.decode: what counts as read, what is compared, the goals, and a run from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.decode_report import (
    AFTER_2048,
    DECODE,
    LARGE_DECODE,
    PREFILL,
    Q4_0,
    Q4_K_M,
    TOGETHER,
    Found,
    goals,
    notes,
    rows,
)
from benchmarks.ours import Ours
from benchmarks.peer import ROOT, Measure
from benchmarks.random_model import packed_directory, write_packed
from pomona._native import available_isas
from pomona.models.presets import PRESETS

# llama.cpp's far end without llama.cpp: every run takes a second, and flash attention is the faster.
STAND_IN = """
import json, sys
for line in sys.stdin:
    r = json.loads(line)
    facts = {"version": "0", "weight_bytes": 1000, "bits_per_weight": 4.5}
    seconds = {"seconds": 1.0 if r.get("context", {}).get("flash") else 2.0}
    print(json.dumps(facts if r["do"] == "load" else seconds), flush=True)
"""


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model in our packed format, in the folder that benchmarks.random_model would make."""
    folder = tmp_path_factory.mktemp("nano")
    write_packed(PRESETS["afm-nano"], packed_directory(folder, "afm-nano"))
    return packed_directory(folder, "afm-nano")


@pytest.fixture
def peer(tmp_path: Path) -> Path:
    """An environment of the peer, as far as the benchmark looks."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "models").mkdir()
    python = tmp_path / "bin/python"
    python.write_text(f"#!{sys.executable}\n{STAND_IN}")
    python.chmod(0o755)
    for name in ("q4_k_m.gguf", "q4_0_pure.gguf"):
        (tmp_path / "models" / name).touch()
    return python


def found(model: str = "small", *, large: bool = False) -> Found:
    return Found(model, (3.5, 4.4), "avx512", 2, bytes_per_token=1_000_000_000, large=large)


class TestOurs:
    def test_every_measure_runs_twice_from_the_same_depth(self, nano: Path) -> None:
        with Ours(nano, threads=1) as ours:
            for measure in (
                Measure("decode", "decode", 0, 3),
                Measure("after", "decode", 20, 3),
                Measure("together", "decode", 20, 3, sequences=8),
                Measure("prefill", "prefill", 0, 30),
            ):
                assert ours.seconds(measure) > 0
                assert ours.seconds(measure) > 0
                lengths = [one.length for one in ours._filled[measure.depth, measure.sequences]]
                assert lengths == [measure.depth + measure.tokens] * measure.sequences

    def test_a_run_reads_the_weights_once_per_step_and_the_keys_and_values_of_every_token(
        self, nano: Path
    ) -> None:
        with Ours(nano, threads=1) as ours:
            weights, cache = ours.engine.bytes_per_token, ours.engine.native.kv_bytes_per_token
            assert ours.bytes_read(Measure("p", "prefill", 0, 512)) == weights
            # The token at position 10 sees 11 tokens, the next one 12; so in each of the two sequences.
            together = Measure("t", "decode", 10, 2, sequences=2)
            assert ours.bytes_read(together) == 2 * weights + 2 * (11 + 12) * cache


class TestReport:
    def test_ratios_and_fractions_are_taken_round_by_round(self) -> None:
        one = found()
        # 128 tokens that read 128 GB: 1 GB a token.
        one.add(DECODE, 128 * 10**9, [40.0, 10.0], [50.0, 20.0], {Q4_K_M: [10.0, 5.0]})
        assert one.fractions[DECODE.name] == [0.8, 0.5]
        assert one.ratios[DECODE.name] == {Q4_K_M: [4.0, 2.0]}
        assert one.times(DECODE, Q4_K_M) == 3.0
        assert one.times(DECODE, Q4_0) is None

    def test_a_row_says_what_was_not_measured(self) -> None:
        one, other = found("a"), found("b")
        one.add(DECODE, 10**9, [40.0], [50.0], {Q4_K_M: [10.0], Q4_0: [20.0]})  # 40 / 128 GB/s of 50
        other.add(PREFILL, 10**9, [400.0], [50.0], {Q4_K_M: [100.0]})  # 400 / 512 GB/s of 50
        one.isas[DECODE.name] = {"scalar": [4.0]}
        table = rows([one, other])
        assert [row["model"] for row in table] == ["a", "b"]
        assert [row["of bandwidth"] for row in table] == ["<1%", "2%"]
        assert table[0]["scalar"] == 4.0
        assert table[0]["x Q4_0 pure"] == "2.00 (2.00-2.00)"
        assert table[1]["scalar"] == table[1]["llama.cpp Q4_0 pure"] == table[1]["x Q4_0 pure"] == "-"

    def test_the_goals_are_those_of_the_first_small_model_and_of_the_large_one(self) -> None:
        first, second, large = found("first"), found("second"), found("large", large=True)
        for one in (first, second):
            one.add(DECODE, 128 * 10**9, [40.0], [50.0], {Q4_K_M: [10.0], Q4_0: [20.0]})
            one.add(AFTER_2048, 10**9, [30.0], [50.0], {Q4_K_M: [10.0], Q4_0: [20.0]})
            one.add(TOGETHER, 10**9, [90.0], [50.0], {Q4_K_M: [10.0], Q4_0: [30.0]})
            one.add(PREFILL, 10**9, [440.0], [50.0], {Q4_K_M: [100.0], Q4_0: [200.0]})
        large.add(LARGE_DECODE, 32 * 10**9, [40.0], [50.0], {Q4_K_M: [40.0]})
        large.add(PREFILL, 10**9, [500.0], [50.0], {Q4_K_M: [200.0]})
        told = [(goal.name, goal.value, goal.bound, goal.met) for goal in goals([first, second, large])]
        assert told == [
            ("first, 2 threads: decode, times Q4_K_M", 4.0, 3.0, True),
            ("first, 2 threads: decode, times Q4_K_M (stretch)", 4.0, 3.5, True),
            ("first, 2 threads: decode, times pure Q4_0", 2.0, 1.6, True),
            ("first, 2 threads: decode, times pure Q4_0 (stretch)", 2.0, 2.0, True),
            ("first, 2 threads: decode after 2,048, times pure Q4_0", 1.5, 1.8, False),
            ("first, 2 threads: decode of 8 together, times pure Q4_0", 3.0, 3.0, True),
            ("first, 2 threads: prefill of 512, times the faster peer", 2.2, 2.2, True),
            ("large, 2 threads: decode, times Q4_K_M", 1.0, 1.3, False),
            ("large, 2 threads: prefill of 512, times Q4_K_M", 2.5, 2.2, True),
            ("large, 2 threads: decode, part of the machine's read bandwidth", 0.8, 0.75, True),
        ]

    def test_a_peer_that_was_not_measured_misses_its_goals(self) -> None:
        one = found()
        one.add(DECODE, 10**9, [40.0], [50.0], {Q4_K_M: [10.0]})
        one.add(PREFILL, 10**9, [440.0], [50.0], {Q4_K_M: [100.0]})
        missing = [goal.name for goal in goals([one]) if goal.value is None]
        assert any("decode, times pure Q4_0" in name for name in missing)
        assert any("the faster peer" in name for name in missing)

    def test_the_notes_name_bits_and_bandwidth(self) -> None:
        one = found()
        one.add(DECODE, 128 * 10**9, [40.0], [50.0], {})
        text = "\n".join(notes([one], {"small": 7}))
        assert "3.50 bits per projection weight, 4.40 in all" in text
        assert "40.0 GB/s; the machine 50.0 GB/s" in text
        assert "small 7" in text


class TestProgram:
    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "benchmarks.decode", "--threads", "1", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    def test_two_models_meet_both_peers_in_one_run(self, nano: Path, peer: Path, tmp_path: Path) -> None:
        other = tmp_path / "another"
        other.symlink_to(nano)
        done = self.run(
            *("--quick", "--rounds", "1", "--peer", str(peer), "--model", str(nano), "--model", str(other))
        )
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout.splitlines()[-1])
        measured = [(row["tokens/s"], row["model"]) for row in report["results"]["rows"]]
        assert len(measured) == 6
        assert {model for _, model in measured} == {nano.name, "another"}
        first = report["results"]["models"][0]
        assert first["peer_speeds"]["decode 8 x tg64 after 32"] == {"Q4_K_M": [512.0], "Q4_0 pure": [512.0]}
        assert first["peers"]["Q4_K_M"]["attention"]["decode tg128"] == "flash"
        assert len(report["goals"]) == 6

    def test_the_whole_run_has_the_large_model_and_the_other_instruction_sets(
        self, nano: Path, peer: Path, tmp_path: Path
    ) -> None:
        folder = tmp_path / "models"  # both peers' files are there
        packed_directory(folder).symlink_to(nano)
        done = self.run(
            *("--rounds", "1", "--peer", str(peer), "--model", str(nano)),
            *("--large", "--large-folder", str(folder)),
        )
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout.splitlines()[-1])
        assert [row["tokens/s"] for row in report["results"]["rows"]] == [
            "decode tg128",
            "decode tg64 after 512",
            "decode tg64 after 2,048",
            "decode 8 x tg64 after 32",
            "prefill pp512",
            "decode tg32",
            "decode 8 x tg16 after 32",
            "prefill pp512",
        ]
        small, large = report["results"]["models"]
        assert large["model"] == packed_directory(folder).name
        for one, decode in ((small, "decode tg128"), (large, "decode tg32")):
            below = available_isas().split()[1:]
            assert list(one["isa_speeds"]) == ([decode, "prefill pp512"] if below else [])
            assert all(list(speeds) == below for speeds in one["isa_speeds"].values())
            assert list(one["peer_speeds"][decode]) == ["Q4_K_M", "Q4_0 pure"]
        assert len(report["goals"]) == 7 + 3

    def test_two_models_of_one_name_are_refused(self, nano: Path, peer: Path) -> None:
        done = self.run("--quick", "--peer", str(peer), "--model", str(nano), "--model", str(nano))
        assert done.returncode == 2
        assert "one name" in done.stderr

    def test_large_without_its_files_says_what_to_run_before_anything_is_measured(
        self, nano: Path, peer: Path, tmp_path: Path
    ) -> None:
        done = self.run("--model", str(nano), "--peer", str(peer), "--large", "--large-folder", str(tmp_path))
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert "make bench-large" in done.stderr

    def test_large_is_never_quick(self) -> None:
        done = self.run("--quick", "--large")
        assert done.returncode == 2
        assert "--large is not quick" in done.stderr
