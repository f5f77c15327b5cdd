"""The int8 key/value cache: half of the memory, little divergence, and every invariance of the bf16 one.

Shape letters: T tokens, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from engine_reference import Agreement
from numpy.typing import NDArray

from pomona import _native
from pomona.data.builtin_text import evaluation_text
from pomona.errors import PomonaError
from pomona.models.tokenizer import Tokenizer
from pomona.runtime.engine import BATCH_TOKENS, Engine, Sequence, StepInput

LENGTH = 700  # over a native step and two chunks of attention
ISAS = _native.available_isas().split()
Logits = NDArray[np.float32]


@pytest.fixture(scope="module")
def engine(small_dir: Path) -> Engine:
    return Engine.load(small_dir, threads=2, kv_cache="int8")


@pytest.fixture(scope="module")
def ids(engine: Engine) -> list[int]:
    tokens: list[int] = np.random.default_rng(1).integers(0, engine.config.vocab_size, LENGTH).tolist()
    return tokens


@pytest.fixture(scope="module")
def whole(engine: Engine, ids: list[int]) -> Logits:
    return engine.logits(ids)


def append(sequence: Sequence, tokens: list[int]) -> Logits:
    engine = sequence.engine
    out = np.empty((len(tokens), engine.config.vocab_size), np.float32)
    engine.native.logits(sequence.handle, np.array(tokens, np.int32), out)
    return out


def agreement(reference: Logits, other: Logits) -> Agreement:
    result = Agreement()
    result.add(reference, other)
    return result


def test_it_takes_little_more_than_half_of_the_memory(engine: Engine, small_dir: Path) -> None:
    bf16 = Engine.load(small_dir, threads=1).native.kv_bytes_per_token
    config = engine.config
    elements = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    assert bf16 == 2 * elements
    assert elements < engine.native.kv_bytes_per_token < 0.6 * bf16


def test_the_logits_stay_close_to_those_of_the_bf16_cache(
    small_dir: Path, ids: list[int], whole: Logits
) -> None:
    bf16 = Engine.load(small_dir, threads=1).logits(ids)
    close = agreement(bf16, whole)
    print(f"\n{small_dir.name}: {close}")
    assert 0 < close.mean_kl < 3e-4 and close.top_rate > 0.95
    shuffled = agreement(bf16, np.roll(whole, 1, axis=0))
    assert shuffled.mean_kl > 100 * close.mean_kl  # there is something to tell apart


@pytest.mark.parametrize("size", [1, 3, 16, 255, 512])
def test_any_chunking_equals_the_whole(engine: Engine, ids: list[int], whole: Logits, size: int) -> None:
    with engine.new_sequence() as sequence:
        start = 0 if size > 16 else 480  # small parts only across the borders of a step and of a chunk
        while sequence.length < start:
            append(sequence, ids[sequence.length : min(start, sequence.length + BATCH_TOKENS)])
        end = LENGTH if size > 16 else 530
        parts = [append(sequence, ids[at : min(at + size, end)]) for at in range(start, end, size)]
    assert np.array_equal(np.concatenate(parts), whole[start:end])


def test_threads_and_neighbours_change_no_bit(small_dir: Path, ids: list[int], whole: Logits) -> None:
    engine = Engine.load(small_dir, threads=3, kv_cache="int8")
    assert np.array_equal(engine.logits(ids), whole)
    with engine.new_sequence() as a, engine.new_sequence() as b:
        engine.step([StepInput(a, ids[:300]), StepInput(b, ids[100:250])])
        said = engine.step([StepInput(a, ids[300:301]), StepInput(b, ids[:40])])
    assert said[0] == int(whole[300].argmax())


def test_truncated_and_used_again_equals_fresh(engine: Engine, ids: list[int], whole: Logits) -> None:
    """Stale scales and values of the tokens before must reach nothing."""
    with engine.new_sequence() as sequence:
        append(sequence, ids[::-1][:90])
        for keep, end in ((0, 37), (21, 64), (5, 6), (6, 300)):
            sequence.truncate(keep if keep == 0 else min(keep, sequence.length))
            assert np.array_equal(append(sequence, ids[keep:end]), whole[keep:end])


def test_a_shared_prefix_equals_a_fresh_one(small_dir: Path, ids: list[int], whole: Logits) -> None:
    engine = Engine.load(small_dir, threads=2, kv_cache="int8", prefix_cache=True)
    for end in (200, 200, 333, 150):
        with engine.new_sequence() as sequence:
            token = engine.step([StepInput(sequence, ids[:end])])[0]
            assert token == int(whole[end - 1].argmax())
            sequence.truncate(end - 7)
            assert np.array_equal(append(sequence, ids[end - 7 : end]), whole[end - 7 : end])
    with engine.new_sequence() as sequence:
        engine.step([StepInput(sequence, ids[:200])])
        assert sequence.reused_tokens > 0


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_reads_what_it_stores(
    small_dir: Path, ids: list[int], whole: Logits, isa: str
) -> None:
    """Norms are summed in lanes, so sets differ in the last bits; a fault would be larger by far."""
    other = Engine.load(small_dir, threads=2, isa=isa, kv_cache="int8").logits(ids[:300])
    assert agreement(whole[:300], other).mean_kl < 1e-5


def test_no_other_precision_is_taken(small_dir: Path) -> None:
    with pytest.raises(PomonaError, match="bf16 or int8"):
        Engine.load(small_dir, kv_cache="fp8")  # type: ignore[arg-type]


def test_the_real_model_stays_close(smollm2_dir: Path) -> None:
    """Keys of trained models have large channels, which random ones lack."""
    ids = Tokenizer.from_directory(smollm2_dir).encode(evaluation_text())[:300]
    bf16, int8 = (Engine.load(smollm2_dir, kv_cache=kind) for kind in ("bf16", "int8"))
    close = agreement(bf16.logits(ids), int8.logits(ids))
    print(f"\nSmolLM2-135M: {close}")
    assert close.mean_kl < 5e-4 and close.top_rate > 0.97
    change = float(int8.score(ids).mean() - bf16.score(ids).mean())
    assert abs(change) < 0.005, "perplexity moves by half a percent"
