"""benchmarks.quality: the sums against float64, the curve, the questions, what is kept, the plot's axes."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import quality, quality_ablation
from benchmarks.choices import Question, accuracy, is_right, items, read_questions
from benchmarks.common import BenchmarkError
from benchmarks.distributions import (
    ReferenceFile,
    Sums,
    compare,
    log_likelihood,
    log_softmax,
    own_sums,
    total,
)
from benchmarks.gguf_writer import write_checkpoint
from benchmarks.plot import Point, Series, linear_ticks, log_ticks, svg
from benchmarks.quality_ours import OurModel, recovery_adapter
from benchmarks.quality_peer import RECIPES, fallback, peer_files
from benchmarks.quality_report import Found, below, curve_at, dominates, front, goals, loss, notes, plot, rows
from benchmarks.quality_store import Record, Store, digest_of, key_of
from pomona.models.config import ModelConfig
from pomona.models.export_gguf import gguf_names
from pomona.models.gguf_file import GgufFile
from pomona.models.presets import PRESETS
from pomona.models.random_init import random_model
from pomona.models.safetensors_file import Checkpoint

GENERATOR = np.random.default_rng(5)
LLAMA = ModelConfig(
    model_type="llama",
    vocab_size=512,
    hidden_size=128,
    intermediate_size=192,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=256,
    rope_theta=10_000.0,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
)


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def tiny_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = LLAMA if request.param == "llama" else PRESETS["afm-nano"]
    return random_model(config, tmp_path_factory.mktemp("tiny") / request.param)


def logits(rows: int, vocabulary: int, scale: float = 4.0) -> np.ndarray:
    return (scale * GENERATOR.standard_normal((rows, vocabulary))).astype(np.float32)


def exact(values: np.ndarray) -> np.ndarray:
    wide = values.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))


class TestDistributions:
    def test_sums_are_those_of_float64(self) -> None:
        p, q = logits(37, 1000), logits(37, 1000)
        targets = GENERATOR.integers(0, 1000, 37).tolist()
        reference = np.empty_like(p)
        log_softmax(p, reference)
        found = compare(q, reference, targets)
        kl = (np.exp(exact(p)) * (exact(p) - exact(q))).sum()
        assert found.tokens == 37
        assert found.kl == pytest.approx(kl, rel=1e-5)
        assert found.nll == pytest.approx(-exact(q)[np.arange(37), targets].sum(), rel=1e-6)
        assert found.same == int((p.argmax(axis=1) == q.argmax(axis=1)).sum())

    def test_a_small_divergence_is_right_to_many_digits(self) -> None:
        p = logits(20, 5000)
        q = (p + 1e-2 * GENERATOR.standard_normal(p.shape)).astype(np.float32)
        reference = np.empty_like(p)
        log_softmax(p, reference)
        kl = (np.exp(exact(p)) * (exact(p) - exact(q))).sum()
        assert compare(q, reference, [0] * 20).kl == pytest.approx(kl, rel=0.01)  # 3e-5 a token

    def test_a_model_does_not_diverge_from_itself_whatever_is_added_to_its_logits(self) -> None:
        p = logits(9, 300)
        reference = np.empty_like(p)
        log_softmax(p, reference)
        found = compare(p + np.float32(7.0), reference, [3] * 9)
        assert abs(found.mean_kl) < 1e-6
        assert found.same_top == 1.0
        own = own_sums(reference, [3] * 9)
        assert (own.kl, own.same) == (0.0, 9)
        assert own.nll == pytest.approx(found.nll, rel=1e-6)

    def test_windows_add_up(self) -> None:
        parts = [Sums(10, 20.0, 1.0, 7), Sums(30, 40.0, 3.0, 13)]
        both = total(parts)
        assert both == Sums(40, 60.0, 4.0, 20)
        assert both.perplexity == pytest.approx(math.exp(1.5))
        assert (both.mean_kl, both.same_top) == (0.1, 0.5)
        assert Sums.from_json(json.loads(json.dumps(both.to_json()))) == both

    def test_a_reference_file_gives_every_window_back_to_another_reader(self, tmp_path: Path) -> None:
        written = ReferenceFile.create(tmp_path / "r.f32", [3, 1, 2], 50)
        windows = [logits(rows, 50) for rows in (3, 1, 2)]
        for index, window in enumerate(windows):
            written.window(index)[:] = window
        facts = written.to_json()
        read = ReferenceFile.open(Path(facts["path"]), facts["lengths"], facts["vocabulary"])
        for index, window in enumerate(windows):
            assert np.array_equal(read.window(index), window)
        assert (tmp_path / "r.f32").stat().st_size == 6 * 50 * 4

    def test_shapes_that_do_not_fit_are_refused(self) -> None:
        with pytest.raises(ValueError, match="targets"):
            compare(logits(3, 5), logits(3, 5), [0, 1])


class TestWindows:
    def test_they_do_not_overlap_and_a_last_token_alone_is_left_out(self) -> None:
        assert quality.split(range(10), 4) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
        assert quality.split(range(9), 4) == [[0, 1, 2, 3], [4, 5, 6, 7]]

    def test_a_start_token_takes_the_first_place_of_each(self) -> None:
        assert quality.split(range(10, 16), 3, bos=1) == [[1, 11, 12], [1, 14, 15]]


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


class TestQuestions:
    def test_every_answer_is_scored_after_the_question(self) -> None:
        question = Question("Why?", ("so", "because"), 1)
        found = items(question, letters)
        assert ["".join(map(chr, item.tokens[item.known :])) for item in found] == [" so", " because"]
        assert all(
            "".join(map(chr, item.tokens[: item.known])) == "Question: Why?\nAnswer:" for item in found
        )

    def test_likelihood_counts_per_character(self) -> None:
        # Per character the long answer is likelier: -10 / 10 against -3 / 2.
        question = Question("", ("no", "absolutely"), 1)
        assert is_right(question, [-3.0, -10.0])
        assert not is_right(question, [-1.0, -10.0])
        assert accuracy([question, question], [[-3.0, -10.0], [-1.0, -10.0]]) == 0.5

    def test_files_are_read_and_bad_ones_named(self, tmp_path: Path) -> None:
        (tmp_path / "piqa").mkdir()
        row = {"goal": "g", "sol1": "a", "sol2": "b"}
        (tmp_path / "piqa/valid.jsonl").write_text(f"{json.dumps(row)}\n" * 3)
        (tmp_path / "piqa/valid-labels.lst").write_text("0\n1\n1\n")
        assert read_questions("piqa", tmp_path, 2) == [
            Question("g", ("a", "b"), 0),
            Question("g", ("a", "b"), 1),
        ]
        with pytest.raises(BenchmarkError, match="3 questions of 5"):
            read_questions("piqa", tmp_path, 5)
        with pytest.raises(BenchmarkError, match="POMONA_DATA"):
            read_questions("arc_challenge", tmp_path, 1)
        (tmp_path / "arc_challenge").mkdir()
        options = [{"label": "A", "text": "x"}, {"label": "B", "text": "y"}]
        arc = {"question": "q", "options": options, "answer": "B"}
        (tmp_path / "arc_challenge/arc_challenge_test.jsonl").write_text(json.dumps(arc) + "\n{}\n")
        assert read_questions("arc_challenge", tmp_path, 1) == [Question("q", ("x", "y"), 1)]
        with pytest.raises(BenchmarkError, match="not the data set"):
            read_questions("arc_challenge", tmp_path, 2)


# --- the report ------------------------------------------------------------------------------------------


def found(
    name: str, megabytes: float, kl: float, kind: quality.Kind = "llama.cpp", nll: float = 3.2
) -> Found:
    return Found(name, kind, int(megabytes * 1e6), 134_000_000, 4.0, Sums(1000, 1000 * nll, 1000 * kl, 700))


REFERENCE = replace(found("16 bit (smollm2-135m)", 269, 0.0, "reference", 3.1), projection_bits=16.0)
OURS = [found("small", 70, 0.3, "ours"), found("large", 84, 0.1, "ours"), found("poor", 90, 0.2, "ours")]


class TestCurve:
    def test_our_curve_is_what_no_other_of_ours_beats(self) -> None:
        assert [one.name for one in front(OURS)] == ["small", "large"]
        assert dominates(OURS[1], OURS[2])
        assert not dominates(OURS[0], OURS[1])
        assert not dominates(OURS[0], OURS[0])

    def test_between_two_points_it_is_straight_in_the_logarithm(self) -> None:
        curve = front(OURS)
        assert curve_at(curve, 77_000_000) == pytest.approx(math.sqrt(0.3 * 0.1))
        assert curve_at(curve, 84_000_000) == pytest.approx(0.1)
        assert curve_at(curve, 200_000_000) == 0.1
        assert curve_at(curve, 69_000_000) is None

    @pytest.mark.parametrize(
        ("megabytes", "kl", "lies_below"),
        [
            (77, 0.25, False),  # above the line
            (77, 0.15, True),  # beats neither point, but the line between them
            (83, 0.09, True),  # beats the larger one
            (60, 0.35, False),  # smaller and worse: neither beats the other
            (60, 0.29, True),  # smaller and better than the smallest
            (104, 0.05, False),  # better for more bytes than ours has
            (84, 0.1, False),  # the same point
        ],
    )
    def test_a_quantisation_below_it_is_named(self, megabytes: float, kl: float, lies_below: bool) -> None:
        assert below([*OURS, found("theirs", megabytes, kl)]) == (["theirs"] if lies_below else [])

    def test_an_adapter_counts_with_its_bytes(self) -> None:
        heavy = replace(found("with", 70, 0.05, "ours"), adapter_bytes=20_000_000, base="small")
        assert heavy.bytes == 90_000_000
        assert below([OURS[0], heavy, found("theirs", 71, 0.2)]) == ["theirs"]


class TestReport:
    def test_a_goal_is_that_of_the_budget_it_meets(self) -> None:
        four = replace(found("four", 80, 0.1, "ours", 3.2), projection_bits=3.998)
        fine = replace(found("fine", 83, 0.08, "ours", 3.15), projection_bits=4.16)  # over the budget
        adapted = replace(found("four + adapter", 80, 0.03, "ours", 3.13), base="four", projection_bits=3.998)
        listed = {goal.name: goal for goal in goals([REFERENCE, four, fine, adapted], REFERENCE)}
        name = "perplexity loss at 4 bits per projection weight, %"
        assert listed[name].value == pytest.approx(100 * (math.exp(0.1) - 1))
        assert listed[name].met
        assert listed[f"{name}, with the recovery adapter"].value == pytest.approx(100 * (math.exp(0.03) - 1))
        assert not listed["perplexity loss at 3.5 bits per projection weight, %"].met  # nobody is there
        closed = listed["KL that the recovery adapter takes away, %, the least of all models"]
        assert closed.value == pytest.approx(70.0)

    def test_engines_that_disagree_miss_a_goal(self) -> None:
        def goal(kl: float) -> bool:
            sixteen = found("llama.cpp F16", 269, kl, "llama.cpp 16")
            return goals([REFERENCE, sixteen], REFERENCE)[-1].met

        assert goal(9e-4)
        assert not goal(1.1e-3)

    def test_every_table_says_what_16_bit_is(self) -> None:
        listed = [REFERENCE, *OURS, found("Q4_0", 76, 0.4)]
        table = rows(listed, REFERENCE)
        assert all("de-quantised Q4_1" in next(iter(row)) for row in table)
        assert [row["MB"] for row in table] == sorted((row["MB"] for row in table), reverse=True)
        assert table[0]["KL"] == ""
        told = notes(listed, REFERENCE, "the protocol", {"Q2_K": "9 of 9"}, {"IQ3_S": "no"})
        assert "lossless" in told[0]
        assert any("Q2_K: 9 of 9" in line for line in told)
        assert any("IQ3_S could not be made: no" in line for line in told)
        assert loss(REFERENCE, REFERENCE) == 0.0

    def test_the_plot_shows_everyone_and_the_line(self) -> None:
        text = plot([REFERENCE, *OURS, found("Q4_0 <pure>", 76, 0.4)], REFERENCE, "WikiText-2; and more")
        tree = ElementTree.fromstring(text)
        shown = [element.text for element in tree.iter("{http://www.w3.org/2000/svg}text")]
        assert {"small", "large", "poor", "Q4_0 <pure>", "Loss against bytes"} <= set(shown)
        assert len(list(tree.iter("{http://www.w3.org/2000/svg}polyline"))) == 1
        assert any("de-quantised Q4_1" in (line or "") for line in shown)


class TestPlot:
    def test_ticks_are_round_and_within_the_axis(self) -> None:
        assert linear_ticks(71.3, 108.2) == [75, 80, 85, 90, 95, 100, 105]
        assert log_ticks(0.03, 0.6) == [0.05, 0.1, 0.2, 0.5]
        assert log_ticks(1e-6, 1.0) == [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]

    def test_less_loss_lies_lower_and_more_bytes_further_right(self) -> None:
        text = svg("t", "x", "y", [Series("s", (Point(1, 1, "a"), Point(2, 0.1, "b")), joined=True)])
        line = next(ElementTree.fromstring(text).iter("{http://www.w3.org/2000/svg}polyline"))
        (x1, y1), (x2, y2) = (map(float, pair.split(",")) for pair in line.attrib["points"].split())
        assert x1 < x2
        assert y1 < y2  # svg counts downwards

    def test_labels_of_neighbours_do_not_lie_on_each_other(self) -> None:
        close = tuple(Point(80 + 0.1 * n, 0.2, f"a long label {n}") for n in range(4))
        text = svg("t", "x", "y", [Series("s", (Point(60, 0.1, "far"), *close, Point(99, 0.3, "off")))])
        places = [
            (element.attrib["x"], element.attrib["y"])
            for element in ElementTree.fromstring(text).iter("{http://www.w3.org/2000/svg}text")
            if (element.text or "").startswith("a long")
        ]
        assert len({y for _, y in places}) == 4 or len(set(places)) == 4

    @pytest.mark.parametrize("y", [0.0, -1.0, math.nan, math.inf])
    def test_a_value_without_a_place_is_refused(self, y: float) -> None:
        with pytest.raises(ValueError, match="point"):
            svg("t", "x", "y", [Series("s", (Point(1, y, "a"),))])


class TestStore:
    def test_what_was_measured_comes_back_and_more_is_added(self, tmp_path: Path) -> None:
        store = Store(tmp_path)
        key = key_of({"files": "a"})
        record = store.load(key)
        record.windows[0] = Sums(3, 1.5, 0.5, 2)
        record.tasks["piqa"] = {0: [-1.0, -2.0]}
        store.save(key, record, {"files": "a"})
        again = Store(tmp_path).load(key)
        assert again == record
        assert again.missing_windows(range(3)) == [1, 2]
        assert again.missing_questions("piqa", 2) == [1]
        assert again.missing_questions("arc_challenge", 1) == [0]
        assert Store(tmp_path, fresh=True).load(key) == Record()

    def test_a_fresh_store_reads_what_it_wrote_itself(self, tmp_path: Path) -> None:
        store = Store(tmp_path, fresh=True)
        store.save("k", Record({1: Sums(1, 1.0, 0.0, 1)}), {})
        assert store.load("k").windows

    def test_the_key_knows_every_part_and_no_order(self) -> None:
        assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
        assert key_of({"a": 1, "b": 2}) != key_of({"a": 1, "b": 3})

    def test_a_damaged_file_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "k.json").write_text("{")
        with pytest.raises(BenchmarkError, match=r"k\.json: is damaged"):
            Store(tmp_path).load("k")

    def test_a_digest_depends_on_every_file(self, tmp_path: Path) -> None:
        a, b = tmp_path / "a", tmp_path / "b"
        a.write_bytes(b"1")
        b.write_bytes(b"2")
        assert digest_of([a, b]) != digest_of([b, a]) != digest_of([a])


# --- models ----------------------------------------------------------------------------------------------


class TestOurs:
    def test_likelihoods_and_sums_are_those_of_the_logits(self, tiny_model: Path, tmp_path: Path) -> None:
        window = [1, 5, 9, 2, 7, 3, 3, 8]
        with OurModel(tiny_model, None, 1) as model:
            values = model.logits(window).copy()
            reference = ReferenceFile.create(tmp_path / "r", [7], values.shape[1])
            own = model.fill(window, reference, 0)
            found = model.compare(window, reference, 0)
            item = items(Question("", ("",), 0), lambda _: window)[0]
            likelihood = model.log_likelihoods([replace(item, known=5)])
        assert own.nll == pytest.approx(-exact(values[:-1])[np.arange(7), window[1:]].sum(), rel=1e-5)
        assert (found.tokens, found.same) == (7, 7)
        assert abs(found.kl) < 1e-5
        assert likelihood == pytest.approx([log_likelihood(values[4:-1], window[5:])], rel=1e-3)

    def test_a_recovery_adapter_is_found_where_there_is_one(self, tmp_path: Path) -> None:
        assert recovery_adapter(tmp_path) is None
        (tmp_path / "adapters/recovery").mkdir(parents=True)
        (tmp_path / "adapters/recovery/adapter_model.safetensors").touch()
        assert recovery_adapter(tmp_path) == tmp_path / "adapters/recovery"


class TestPeerFiles:
    def test_the_16_bit_file_holds_our_weights_in_ggufs_order(self, tiny_model: Path, tmp_path: Path) -> None:
        write_checkpoint(tiny_model, tmp_path / "16bit.gguf")
        config = ModelConfig.from_directory(tiny_model)
        names = gguf_names(config)
        with Checkpoint(tiny_model) as ours, GgufFile(tmp_path / "16bit.gguf") as file:
            for name, theirs in names.items():
                values = (ours.array(name).astype(np.uint32) << 16).view(np.float32)
                found = file.dequantize(theirs).reshape(values.shape)
                if config.model_type == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
                    heads = found.reshape(-1, config.head_dim // 2, 2, values.shape[1])
                    found = heads.swapaxes(1, 2).reshape(values.shape)
                assert np.allclose(found, values, rtol=0, atol=1e-7), name

    def test_what_llama_cpp_takes_in_place_of_wide_blocks_is_told(self) -> None:
        by_name = {recipe.name: recipe for recipe in RECIPES}
        types = {"Q5_0": 180, "Q4_K": 30, "Q8_0": 1}
        assert fallback(by_name["Q4_K_M"], types) == "181 of 211 matrices are 180 Q5_0, 1 Q8_0"
        assert fallback(by_name["Q4_K_M"], {"Q4_K": 200, "Q6_K": 11}) is None
        assert fallback(by_name["Q4_0 pure"], {"Q4_0": 211}) is None

    def test_names_of_recipes_and_files_are_unique(self) -> None:
        assert (
            len({recipe.name for recipe in RECIPES})
            == len({recipe.file for recipe in RECIPES})
            == len(RECIPES)
        )
        assert {"Q4_K_M", "Q4_0 pure", "Q3_K_M", "IQ4_NL", "IQ3_S", "IQ3_XXS", "Q2_K"} <= {
            recipe.name for recipe in RECIPES
        }

    def test_a_file_that_cannot_be_made_is_left_out_with_the_reason(
        self, tmp_path: Path, tiny_model: Path
    ) -> None:
        python = tmp_path / "python"
        python.write_text('#!/bin/sh\nread line\necho \'{"error": "no such type"}\'\n')
        python.chmod(0o755)
        files, refused = peer_files(
            tmp_path / "gguf", python, RECIPES[:1], lambda path: write_checkpoint(tiny_model, path), dict
        )
        assert list(files) == ["F16"]
        assert refused == {"Q4_K_M": "llama.cpp: no such type"}


class TestAblation:
    def test_a_row_is_there_when_its_model_is(self, tmp_path: Path) -> None:
        for name in ("4bit-kmeans", "4bit-allocated"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "config.json").touch()
        entries, missing = quality_ablation.available(tmp_path, [4.0])
        assert [entry.step.name for entry in entries] == ["kmeans", "allocated"]
        assert "4 bits: + recovery adapter" in missing
        (tmp_path / "4bit-allocated/adapters/recovery").mkdir(parents=True)
        (tmp_path / "4bit-allocated/adapters/recovery/adapter_model.safetensors").touch()
        entries, _ = quality_ablation.available(tmp_path, [4.0])
        assert entries[-1].step.name == "adapter"
        assert entries[-1].adapter is not None

    def test_commands_say_source_target_and_budget(self, tmp_path: Path) -> None:
        steps = {step.name: step for step in quality_ablation.STEPS}
        made = quality_ablation.command_of(steps["weighted"], Path("m"), tmp_path, 3.5, 2)
        assert made[3:8] == ["compress", "m", "--out", str(tmp_path / "3.5bit-weighted"), "--bits"]
        assert made[8] == "3.5"
        # --bits 4 would mean four bits of indices, with tables on top.
        assert quality_ablation.budget_option(4.0) == "3.999"
        trained = quality_ablation.command_of(steps["tables"], Path("m"), tmp_path, 3.5, 2)
        assert trained[3:5] == ["recover", str(tmp_path / "3.5bit-allocated")]
        assert trained[trained.index("--out") + 1] == str(tmp_path / "3.5bit-tables")

    def test_a_step_that_gains_nothing_misses_its_goal(self) -> None:
        steps = quality_ablation.STEPS
        entries = [
            quality_ablation.Entry(4.0, step, Path(step.name), None)
            for step in (steps[0], steps[1], steps[2])
        ]
        kls = {
            entry.name: found(entry.name, 80, kl, "ours")
            for entry, kl in zip(entries, (0.5, 0.2, 0.21), strict=True)
        }
        assert [goal.met for goal in quality_ablation.goals(entries, kls)] == [True, False]


def test_without_data_one_line_says_what_to_set(capsys: pytest.CaptureFixture[str], tiny_model: Path) -> None:
    arguments = ["--reference", str(tiny_model), "--data", str(tiny_model / "none"), "--no-peer"]
    assert quality.main(arguments) == 2
    assert "POMONA_DATA" in capsys.readouterr().err
