"""Warm-up and cosine: the ends, the middle, and that it never leaves its bounds."""

from __future__ import annotations

import pytest

from pomona.pretraining.schedule import schedule


def test_its_corners() -> None:
    at = [schedule(step, steps=100, warm_up=10, floor=0.005) for step in range(100)]
    assert at[0] == pytest.approx(0.1)  # above zero: the first update counts
    assert at[9] == 1.0
    assert at[54] == pytest.approx((1 + 0.005) / 2)
    assert at[99] == 0.005


def test_it_rises_and_then_falls() -> None:
    at = [schedule(step, steps=375, warm_up=50, floor=0.1) for step in range(375)]
    assert at[:50] == sorted(at[:50]) and at[49:] == sorted(at[49:], reverse=True)
    assert min(at[50:]) >= 0.1 and max(at) <= 1.0


def test_without_warm_up_it_starts_near_the_peak() -> None:
    assert schedule(0, steps=1000, warm_up=0, floor=0.0) == pytest.approx(1.0, abs=1e-5)
