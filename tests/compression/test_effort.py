"""Effort: small models are measured in full, the work for large ones is bounded, and its time is told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pomona.compression import effort
from pomona.compression.effort import Effort, announcement, estimate_seconds
from pomona.compression.options import CompressOptions
from pomona.compression.sensitivity import TOKENS
from pomona.models.presets import preset

SMALL, LARGE = preset("afm-nano"), preset("afm-on-device")
MIX = CompressOptions(bits=3.5)
BLIND = CompressOptions(method="kmeans", calibration="none")


def seconds(options: CompressOptions, **changes: int) -> dict[str, float]:
    config = replace(LARGE, **changes)
    return estimate_seconds(config, options, Effort.of(config, options), 2)


def test_a_small_model_is_measured_module_by_module_and_packed_in_every_width() -> None:
    found = Effort.of(SMALL, MIX)
    assert (found.measured_tokens, found.layers_together, found.drafts) == (TOKENS, 1, False)
    assert found.calibration_tokens is None and found.draft_tokens is None
    assert found.table_columns == 64


@pytest.mark.parametrize(
    ("options", "drafts"),
    [
        (MIX, True),
        (CompressOptions(size=1 << 30), True),
        (CompressOptions(bits=4), False),  # nothing is chosen
        (CompressOptions(bits=3.5, method="weighted"), False),  # nothing is cheaper
    ],
)
def test_a_large_model_is_drafted_where_bits_are_chosen(options: CompressOptions, drafts: bool) -> None:
    found = Effort.of(LARGE, options)
    assert found.drafts == drafts
    assert found.table_columns == 256


def test_measurements_do_not_grow_with_the_layers() -> None:
    for layers in (6, 26, 40, 120):
        together = Effort.of(replace(LARGE, num_hidden_layers=layers), MIX).layers_together
        assert -(-layers // together) <= effort.MEASUREMENTS


def test_a_large_model_takes_minutes_and_the_announcement_says_what_for() -> None:
    found = seconds(MIX)
    assert set(found) == {"answer", "calibrate", "draft", "sensitivity", "palettise"}
    assert 900 < sum(found.values()) < 1800  # the goal for 2.7 billion parameters on two cores
    assert max(found, key=lambda label: found[label]) == "palettise"
    text = announcement(found, 2)
    assert text is not None and text.startswith("about ") and " minutes on 2 cores (answer " in text
    assert announcement(seconds(BLIND), 2) is None


def test_what_is_not_done_takes_no_time() -> None:
    uniform, mix = seconds(CompressOptions(bits=4)), seconds(MIX)
    assert set(uniform) == {"answer", "calibrate", "palettise"}
    assert uniform["palettise"] == mix["palettise"]  # a mix packs in earnest only what it chose
    assert seconds(replace(MIX, calibration="notes.txt"))["answer"] == 0.0
    assert set(seconds(BLIND)) == {"palettise"}


def test_half_of_the_layers_take_half_of_the_time() -> None:
    whole, half = seconds(MIX), seconds(MIX, num_hidden_layers=13)
    for label, value in whole.items():
        assert half[label] == pytest.approx(value / 2, rel=0.25)
