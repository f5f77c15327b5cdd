"""The profile of a decoded token: every product is timed, nothing is counted twice, answers stay the same."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pomona.errors import PomonaError
from pomona.runtime import profile as profile_module
from pomona.runtime.engine import Engine, StepInput
from pomona.runtime.profile import measure_decoding


@pytest.fixture(scope="module", params=[1, 2])
def profiled(request: pytest.FixtureRequest, small_4bit_dir: Path) -> Engine:
    return Engine.load(small_4bit_dir, threads=request.param)


def expected_modules(engine: Engine) -> set[str]:
    head = "model.embed_tokens" if engine.config.tie_word_embeddings else "lm_head"
    return {*engine.config.linear_shapes(), head}


def test_every_module_takes_time_and_all_of_them_less_than_the_token(profiled: Engine) -> None:
    profile = measure_decoding(profiled, tokens=32, patience=0)
    assert set(profile.modules) == expected_modules(profiled)
    assert 32 <= profile.tokens <= profile.decoded
    assert all(nanoseconds > 0 for nanoseconds in profile.modules.values())
    assert profile.attention_ns > 0
    assert 0 < profile.fastest_ns <= profile.token_ns
    assert profile.modules_ns + profile.attention_ns < profile.token_ns
    assert profile.to_json()["remainder_ns"] == pytest.approx(
        profile.token_ns - profile.modules_ns - profile.attention_ns
    )


def test_the_times_of_a_step_are_at_most_the_step(profiled: Engine) -> None:
    profiled.profile(True)
    with profiled.new_sequence() as sequence:
        start = time.perf_counter_ns()
        profiled.step([StepInput(sequence, list(range(40)))])
        elapsed = time.perf_counter_ns() - start
    parts = profiled.take_profile()
    assert 0 < sum(parts.values()) <= elapsed
    assert set(profiled.take_profile().values()) == {0.0}  # taken: counting began anew
    profiled.profile(False)
    assert profiled.take_profile() == {}


def test_a_profile_changes_no_answer(profiled: Engine) -> None:
    def answer() -> list[int]:
        with profiled.new_sequence() as sequence:
            tokens = [profiled.step([StepInput(sequence, [5, 7, 9])])[0]]
            for _ in range(10):
                tokens.append(profiled.step([StepInput(sequence, tokens[-1:])])[0])
        return tokens

    plain = answer()
    profiled.profile(True)
    watched = answer()
    profiled.profile(False)
    assert watched == plain


def test_after_a_measurement_no_profile_is_on(profiled: Engine) -> None:
    measure_decoding(profiled, tokens=32, patience=0)
    assert profiled.take_profile() == {}


def test_a_profile_may_be_turned_on_and_off_while_others_step(profiled: Engine) -> None:
    done = threading.Event()

    def switch() -> None:
        while not done.is_set():
            profiled.profile(True)
            profiled.take_profile()
            profiled.profile(False)

    other = threading.Thread(target=switch)
    other.start()
    try:
        with profiled.new_sequence() as sequence:
            for token in range(60):
                profiled.step([StepInput(sequence, [token])])
            assert sequence.length == 60
    finally:
        done.set()
        other.join()


def test_too_few_tokens_for_a_median_are_refused(profiled: Engine) -> None:
    with pytest.raises(PomonaError, match="at least 32"):
        measure_decoding(profiled, tokens=31)


class ScriptedEngine:
    """Token n takes `times(n)` milliseconds, nine tenths of them in one module, by a clock of its own."""

    threads, isa, config = 1, "scalar", SimpleNamespace(vocab_size=100)

    def __init__(self, times: Callable[[int], float]) -> None:
        self.times, self.now, self.steps, self.last = times, 0.0, 0, 0.0
        self.length = 0

    def profile(self, on: bool) -> None: ...

    def take_profile(self) -> dict[str, float]:
        return {"attention": 0.05 * self.last, "layer": 0.9 * self.last}

    def new_sequence(self) -> ScriptedEngine:
        return self

    def __enter__(self) -> ScriptedEngine:
        return self

    def __exit__(self, *_: object) -> None: ...

    def truncate(self, length: int) -> None:
        self.length = length

    def step(self, inputs: list[StepInput]) -> list[int]:
        self.length += len(inputs[0].tokens)
        self.last = 1e6 * self.times(self.steps)
        self.steps += 1
        self.now += self.last
        return [1]


def scripted(monkeypatch: pytest.MonkeyPatch, times: Callable[[int], float]) -> Any:
    engine = ScriptedEngine(times)
    clock = SimpleNamespace(perf_counter_ns=lambda: int(engine.now), monotonic=lambda: engine.now / 1e9)
    monkeypatch.setattr(profile_module, "time", clock)
    return engine


def test_on_a_quiet_machine_the_medians_are_over_all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = scripted(monkeypatch, lambda n: 20 + 0.01 * (n % 7))
    profile = measure_decoding(engine, tokens=64)
    assert (profile.tokens, profile.decoded) == (64, 64)
    assert not profile.disturbed


def test_fast_tokens_are_measured_for_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = scripted(monkeypatch, lambda n: 2)
    profile = measure_decoding(engine, tokens=64)
    assert profile.tokens == profile.decoded == 512
    assert engine.length <= 16 + 8 + 64  # the same places again


def test_on_a_busy_machine_the_tokens_that_nothing_disturbed_count(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = scripted(monkeypatch, lambda n: 2 if n % 5 == 0 else 30)
    profile = measure_decoding(engine, tokens=64)
    assert (profile.tokens, profile.decoded) == (32, 128)
    assert profile.token_ns == pytest.approx(2e6)
    assert profile.modules["layer"] == pytest.approx(1.8e6)  # of the same tokens: the parts add up
    assert profile.remainder_ns == pytest.approx(1e5)
    assert not profile.disturbed


def test_a_moment_in_which_all_tokens_are_slow_is_outlasted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that holds one of two cores slows every token down, and by about the same time."""
    profile = measure_decoding(scripted(monkeypatch, lambda n: 8 if n < 80 else 2), tokens=64)
    assert profile.token_ns == pytest.approx(2e6)


def test_patience_ends_and_the_profile_says_that_it_was_disturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = scripted(monkeypatch, lambda n: 2 if n == 40 else 100)
    profile = measure_decoding(engine, tokens=64, patience=20)
    assert engine.now / 1e9 < 30
    assert profile.tokens == 32
    assert profile.disturbed
