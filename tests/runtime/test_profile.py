"""The profile of a decoded token: every product is timed, nothing is counted twice, answers stay the same."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from pomona.errors import PomonaError
from pomona.runtime.engine import Engine, StepInput
from pomona.runtime.profile import measure_decoding


@pytest.fixture(scope="module", params=[1, 2])
def profiled(request: pytest.FixtureRequest, small_4bit_dir: Path) -> Engine:
    return Engine.load(small_4bit_dir, threads=request.param)


def expected_modules(engine: Engine) -> set[str]:
    head = "model.embed_tokens" if engine.config.tie_word_embeddings else "lm_head"
    return {*engine.config.linear_shapes(), head}


def test_every_module_takes_time_and_all_of_them_less_than_the_token(profiled: Engine) -> None:
    profile = measure_decoding(profiled, tokens=32)
    assert set(profile.modules) == expected_modules(profiled)
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
    measure_decoding(profiled, tokens=32)
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
