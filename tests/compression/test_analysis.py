"""The analysis of a compressed model: what is read, what is refused, how times of other bits are foretold."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from analysis_samples import OTHER_BYTES, packed_bytes, report_json, sample_analysis, with_fixed_embedding
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.compression.analysis import TimeFit, read_report
from pomona.errors import PomonaError


def written(directory: Path, value: Any) -> Path:
    (directory / "compression_report.json").write_text(
        value if isinstance(value, str) else json.dumps(value), encoding="utf-8"
    )
    return directory


def test_a_report_gives_its_modules_and_what_they_could_have_been(tmp_path: Path) -> None:
    report = read_report(written(tmp_path, report_json(layers=2)))
    assert len(report.modules) == 1 + 2 * 7
    q = report.modules[1]
    assert (q.name, q.layer, q.kind, q.bits) == ("model.layers.0.self_attn.q_proj", 0, "q_proj", 3)
    assert [c.bits for c in q.choices] == [4, 3, 2]
    assert q.chosen.bytes == packed_bytes((576, 576), 3)
    assert report.modules[0].layer is None


def test_without_a_report_the_user_hears_who_makes_one(tmp_path: Path) -> None:
    with pytest.raises(PomonaError, match="pomona compress"):
        read_report(tmp_path)


def test_a_report_of_version_1_says_to_compress_again(tmp_path: Path) -> None:
    with pytest.raises(PomonaError, match=r"version 1.*compress the model again"):
        read_report(written(tmp_path, {"version": 1, "tensors": []}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r.update(version=3), "version 3"),
        (lambda r: r["modules"][1].update(bits=5), "none of its choices"),
        (lambda r: r["modules"].append(r["modules"][1]), "appears twice"),
        (lambda r: r["modules"][1]["choices"][0].update(bytes=-1), "bytes"),
        (lambda r: r["modules"][1]["choices"].append(r["modules"][1]["choices"][0]), "two choices"),
        (lambda r: r.update(file_bytes=17), "larger than the file"),
        (lambda r: r.pop("modules"), "modules"),
        (lambda r: r["modules"][1]["choices"][0].update(kl=math.nan), "kl"),
    ],
)
def test_a_report_that_contradicts_itself_is_refused_in_one_line(
    tmp_path: Path, change: Any, words: str
) -> None:
    raw = report_json()
    change(raw)
    with pytest.raises(PomonaError, match=words) as error:
        read_report(written(tmp_path, raw))
    assert "\n" not in str(error.value)


@given(st.one_of(st.text(), st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x))))
@settings(max_examples=60, deadline=None)
def test_any_other_file_is_refused(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    with pytest.raises(PomonaError):
        read_report(written(tmp_path_factory.mktemp("r"), value))


def test_the_parts_of_a_token_and_of_the_file_add_up() -> None:
    analysis = sample_analysis()
    totals = analysis.totals()
    assert analysis.other_bytes == OTHER_BYTES
    assert sum(t.bytes for t in totals) + OTHER_BYTES == analysis.report.file_bytes
    assert sum(t.nanoseconds for t in totals) + analysis.fixed_ns == pytest.approx(analysis.profile.token_ns)
    assert analysis.profile.remainder_ns == pytest.approx(100_000)
    assert sum(t.loss for t in totals) == pytest.approx(analysis.report.predicted_kl)


def test_modules_are_told_the_slowest_first() -> None:
    analysis = sample_analysis()
    times = [analysis.nanoseconds(module) for module in analysis.by_cost()]
    assert times == sorted(times, reverse=True) and len(times) == 22
    assert analysis.totals()[0].kind == "embed_tokens"


def test_the_fit_finds_the_line_that_the_times_lie_on() -> None:
    sizes, weights = [100, 200, 400, 400, 900], [250, 400, 800, 1600, 1800]
    times = [50 + 0.3 * b + 0.1 * w for b, w in zip(sizes, weights, strict=True)]
    fit = TimeFit.through(sizes, weights, times)
    assert (fit.fixed_ns, fit.ns_per_byte, fit.ns_per_weight) == pytest.approx((50, 0.3, 0.1))
    assert fit.median_deviation < 1e-9


@given(st.lists(st.tuples(*[st.integers(1, 10**9)] * 2, st.floats(1, 1e9)), max_size=12))
@settings(deadline=None)
def test_no_fit_foretells_a_negative_time_or_less_time_for_more_bytes(
    rows: list[tuple[int, int, float]],
) -> None:
    fit = TimeFit.through([r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows])
    for size, weights, time in rows:
        less, same, more = (fit.scaled(time, weights, size, s) for s in (size // 2, size, 2 * size))
        assert 0 <= less <= more
        assert same == pytest.approx(time)


def test_a_choice_that_is_not_taken_has_a_foretold_time_and_the_taken_one_the_measured() -> None:
    analysis = sample_analysis()
    module = analysis.to_json()["modules"][1]
    times = {choice["bits"]: choice["ns"] for choice in module["choices"]}
    assert times[3] == module["ns"] == pytest.approx(1000 + 0.02 * packed_bytes((576, 576), 3))
    assert times[2] < times[3] < times[4]


def test_without_measured_sensitivity_the_loss_is_the_squared_error() -> None:
    raw = report_json()
    for module in raw["modules"]:
        for choice in module["choices"]:
            choice["kl"] = None
    raw["predicted_kl"] = None
    data = sample_analysis(raw).to_json()
    assert data["loss"] == "error"
    assert all(c["loss"] == c["relative_error"] ** 2 for m in data["modules"] for c in m["choices"])


def test_a_head_without_a_choice_is_told_with_its_time_and_bytes_but_without_a_loss() -> None:
    analysis = sample_analysis(with_fixed_embedding())
    data = analysis.to_json()
    head, *others = data["modules"]
    assert (head["name"], head["fixed"], head["bits"], head["kl"]) == ("model.embed_tokens", True, 8, None)
    assert head["ns"] == 40_000 and len(head["choices"]) == 1 and head["choices"][0]["loss"] == 0
    assert len(others) == 21 and not any(module["fixed"] for module in others)
    assert data["loss"] == "kl"
    assert analysis.other_bytes == OTHER_BYTES
    assert analysis.fixed_ns == pytest.approx(150_000)
    assert analysis.totals()[0].kind == "embed_tokens"
