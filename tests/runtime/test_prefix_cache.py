"""The prefix cache changes the time that a request takes and nothing else: every answer equals, bit for bit,
that of an engine without it, whatever came before and under whichever adapter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_adapters import write_adapter

from pomona.errors import PomonaError
from pomona.runtime.adapters import LoadedAdapter, load_adapter
from pomona.runtime.engine import Engine, StepInput

PAGE = 16


def tokens(engine: Engine, count: int, seed: int = 0) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(0, engine.config.vocab_size, count)]


def ask(engine: Engine, prompt: list[int], adapter: LoadedAdapter | None = None, steps: int = 6) -> list[int]:
    with engine.new_sequence(adapter) as sequence:
        said = engine.step([StepInput(sequence, prompt)])
        for _ in range(steps - 1):
            said += engine.step([StepInput(sequence, said[-1:])])
    return said


def last_logits(engine: Engine, prompt: list[int], adapter: LoadedAdapter | None = None) -> np.ndarray:
    """Logits after the last token; the tokens before it go through step() and so through the cache."""
    out = np.empty((1, engine.config.vocab_size), np.float32)
    with engine.new_sequence(adapter) as sequence:
        engine.step([StepInput(sequence, prompt[:-1])])
        engine.native.logits(sequence.handle, np.array(prompt[-1:], np.int32), out)
    return out[0]


def found(engine: Engine, prompt: list[int], adapter: LoadedAdapter | None = None) -> int:
    """How many tokens of the prompt the cache has."""
    with engine.new_sequence(adapter) as sequence:
        engine.step([StepInput(sequence, prompt)])
        return sequence.reused_tokens


@pytest.fixture
def cached(small_dir: Path) -> Engine:
    return Engine.load(small_dir, threads=2, prefix_cache=True)


@pytest.fixture
def plain(small_dir: Path) -> Engine:
    return Engine.load(small_dir, threads=2)


def test_requests_a_b_a_equal_three_fresh_engines(small_dir: Path, tmp_path: Path, cached: Engine) -> None:
    """One prefix under A, then B, then A again, then none: the bug of caches that forget the adapter."""
    prefix = tokens(cached, 100)
    paths = {
        name: write_adapter(tmp_path / name, cached.config, seed=seed) for name, seed in (("a", 1), ("b", 2))
    }
    adapters = {name: load_adapter(cached, path) for name, path in paths.items()}
    order = ["a", "b", "a", None]
    got = [last_logits(cached, prefix, adapters[name] if name else None) for name in order]
    assert all(found(cached, prefix, adapters[name] if name else None) == 96 for name in order)
    for name, logits in zip(order, got, strict=True):
        fresh = Engine.load(small_dir, threads=2)
        expected = last_logits(fresh, prefix, load_adapter(fresh, paths[name]) if name else None)
        np.testing.assert_array_equal(logits, expected)
    assert not np.array_equal(got[0], got[1]) and not np.array_equal(got[0], got[3])


def test_a_new_version_of_an_adapter_does_not_see_the_old_pages(cached: Engine, tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "a", cached.config)
    prompt = tokens(cached, 50)
    ask(cached, prompt, load_adapter(cached, path))
    assert found(cached, prompt, load_adapter(cached, path)) == 0


@pytest.mark.parametrize(("length", "reused"), [(15, 0), (16, 0), (17, 16), (32, 16), (33, 32), (100, 96)])
def test_whole_pages_are_reused_and_one_token_is_always_computed(
    cached: Engine, length: int, reused: int
) -> None:
    prompt = tokens(cached, length)
    first = ask(cached, prompt, steps=1)
    assert ask(cached, prompt, steps=1) == first
    assert found(cached, prompt) == reused


def test_generated_tokens_are_part_of_the_prefix(cached: Engine) -> None:
    """The second turn of a chat finds the first turn's answer."""
    prompt = tokens(cached, 20)
    said = ask(cached, prompt, steps=30)
    # 20 + 29 tokens were in the cache: three pages
    assert found(cached, prompt + said + tokens(cached, 5, seed=9)) == 48


def test_sequences_that_run_side_by_side_share_pages(cached: Engine) -> None:
    prompt = tokens(cached, 65)
    free = cached.native.free_tokens
    first, second = cached.new_sequence(), cached.new_sequence()
    cached.step([StepInput(first, prompt)])
    cached.step([StepInput(second, prompt)])
    assert free - cached.native.free_tokens == 64 + 2 * PAGE
    first.close()
    second.close()
    assert cached.native.free_tokens == free, "cached pages count as free"


def test_two_sequences_that_compute_the_same_page_at_once_end_with_one(cached: Engine) -> None:
    prompt = tokens(cached, 33)
    free = cached.native.free_tokens
    sequences = [cached.new_sequence() for _ in range(3)]
    said = cached.step([StepInput(s, prompt) for s in sequences])
    assert len(set(said)) == 1
    assert free - cached.native.free_tokens == 2 * PAGE + 3 * PAGE
    for sequence in sequences:
        sequence.close()
    assert cached.native.free_tokens == free


@pytest.mark.parametrize("length", [0, 5, 16, 20, 31, 32, 40, 63])
def test_truncation_does_not_touch_what_others_read(cached: Engine, plain: Engine, length: int) -> None:
    prompt, other = tokens(cached, 64), tokens(cached, 40, seed=1)
    keeper, cutter = cached.new_sequence(), cached.new_sequence()
    cached.step([StepInput(keeper, prompt)])
    cached.step([StepInput(cutter, prompt)])
    cutter.truncate(length)
    changed = cached.step([StepInput(cutter, other)])
    kept = cached.step([StepInput(keeper, other)])
    with plain.new_sequence() as a, plain.new_sequence() as b:
        assert changed == plain.step([StepInput(a, prompt[:length] + other)])
        assert kept == plain.step([StepInput(b, prompt + other)])
    keeper.close()
    cutter.close()


def test_old_pages_give_way_when_memory_runs_out(small_dir: Path, plain: Engine) -> None:
    engine = Engine.load(small_dir, threads=2, kv_tokens=160, prefix_cache=True)
    for seed in range(12):
        prompt = tokens(engine, 90, seed=seed % 4)
        assert ask(engine, prompt, steps=4) == ask(plain, prompt, steps=4)
    assert engine.native.free_tokens == 160
    with engine.new_sequence() as a, engine.new_sequence() as b:
        engine.step([StepInput(a, tokens(engine, 100))])
        with pytest.raises(PomonaError, match="cache is full"):
            engine.step([StepInput(b, tokens(engine, 100, seed=5))])
        assert b.length == 0
    assert engine.native.free_tokens == 160


# --- pages that only begin alike


@pytest.mark.parametrize(
    ("length", "common", "reused"), [(2, 2, 1), (17, 16, 16), (40, 39, 39), (40, 37, 37)]
)
@pytest.mark.parametrize("running", [True, False])
def test_a_page_that_only_begins_alike_is_copied(
    small_dir: Path, plain: Engine, length: int, common: int, reused: int, running: bool
) -> None:
    """From a sequence that still runs, and from the cache, which has full pages alone."""
    engine = Engine.load(small_dir, threads=2, prefix_cache=True, partial_pages=True)
    prompt = tokens(engine, length)
    other = prompt[:common] + tokens(engine, length - common, seed=1)
    first = engine.new_sequence()
    said = engine.step([StepInput(first, prompt)])
    if not running:
        engine.step([StepInput(first, tokens(engine, PAGE, seed=2))])
        first.close()
    assert ask(engine, other) == ask(plain, other)
    assert found(engine, other) >= reused
    if running:  # and the one that was copied from goes on as if nothing had been
        said += engine.step([StepInput(first, said)])
        assert said == ask(plain, prompt, steps=2)
        first.close()
    assert engine.native.free_tokens == engine.native.kv_tokens


def test_servers_share_whole_pages_alone(cached: Engine) -> None:
    """Who sees how much of a guess is in the cache could guess the prompts of others token by token."""
    prompt = tokens(cached, 40)
    ask(cached, prompt)
    assert found(cached, prompt[:37] + tokens(cached, 3, seed=1)) == 32


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "grow", "cut", "close"]),
        st.integers(0, 3),  # which sequence
        st.integers(0, 2),  # which text
        st.integers(1, 70),  # how much of it
    ),
    max_size=25,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=ACTIONS, partial=st.booleans())
def test_any_course_of_events_equals_that_without_a_cache(
    small_dir: Path, actions: list[tuple[str, int, int, int]], partial: bool
) -> None:
    """Two engines, one with the cache, walk through the same random requests on a memory that fills up."""
    engines = [
        Engine.load(small_dir, threads=1, kv_tokens=320, prefix_cache=cache, partial_pages=cache and partial)
        for cache in (True, False)
    ]
    texts = [tokens(engines[0], 70, seed=seed) for seed in range(3)]
    sequences = [[engine.new_sequence() for _ in range(4)] for engine in engines]
    for action, which, text, count in actions:
        results: list[list[int] | str] = []
        for engine, own in zip(engines, sequences, strict=True):
            try:
                if action == "close":
                    own[which].close()
                    own[which] = engine.new_sequence()
                    results.append("closed")
                elif action == "cut":
                    own[which].truncate(min(count, own[which].length))
                    results.append("cut")
                else:
                    start = own[which].length % 70 if action == "grow" else 0
                    part = (texts[text] + texts[text])[start : start + count]
                    results.append(engine.step([StepInput(own[which], part)]))
            except PomonaError as error:
                results.append(str(error))
            except MemoryError:
                results.append("full")
        if any(isinstance(result, str) and result not in ("closed", "cut") for result in results):
            return  # a shared page counts once with the cache and twice without: they differ here
        assert results[0] == results[1]
        assert [s.length for s in sequences[0]] == [s.length for s in sequences[1]]
