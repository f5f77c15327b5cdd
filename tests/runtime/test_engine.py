"""What a sequence computes does not depend, bit for bit, on how its tokens came, on its neighbours, on the
threads, or on what the cache held before.

Random models of every family, plain and compressed, carry most of it; the real compressed model is checked
once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from engine_directories import Tensors, rewritten
from engine_reference import Agreement, log_softmax
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pomona import _native
from pomona.compression.compress import compress
from pomona.models.presets import PRESETS
from pomona.models.random_init import random_model
from pomona.runtime.engine import BATCH_TOKENS, Engine, Sequence, StepInput
from pomona.runtime.sampling import Sampling

PAGE, CHUNK = 16, 256  # tokens of a cache page and of a chunk of attention
LENGTH = 1200  # over two native steps and four chunks
BORDERS = (PAGE, CHUNK, BATCH_TOKENS, 2 * CHUNK + PAGE, 2 * BATCH_TOKENS, 1100)
ISAS = _native.available_isas().split()

Logits = NDArray[np.float32]
relaxed = settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module", params=["bf16", "4bit"])
def directory(request: pytest.FixtureRequest, small_dir: Path, small_4bit_dir: Path) -> Path:
    return small_dir if request.param == "bf16" else small_4bit_dir


@pytest.fixture(scope="module")
def engine(directory: Path) -> Engine:
    return Engine.load(directory, threads=2)


@pytest.fixture(scope="module")
def ids(engine: Engine) -> list[int]:
    tokens: list[int] = np.random.default_rng(1).integers(0, engine.config.vocab_size, LENGTH).tolist()
    return tokens


@pytest.fixture(scope="module")
def whole(engine: Engine, ids: list[int]) -> Logits:
    """Logits of the 1,200 tokens in the largest steps there are."""
    return engine.logits(ids)


def append(sequence: Sequence, tokens: list[int]) -> Logits:
    """Appends to a sequence at most one step of tokens and gives the logits of each."""
    engine = sequence._engine
    out = np.empty((len(tokens), engine.config.vocab_size), np.float32)
    engine.native.logits(sequence.handle, np.array(tokens, np.int32), out)
    return out


def in_parts(sequence: Sequence, tokens: list[int], sizes: Iterator[int] | list[int]) -> Logits:
    parts, start = [], 0
    for size in sizes:
        if start >= len(tokens):
            break
        parts.append(append(sequence, tokens[start : start + size]))
        start += size
    assert start >= len(tokens)
    return np.concatenate(parts)


# --- one sequence, whichever way its tokens come ------------------------------------------------------------


def test_the_logits_are_worth_comparing(whole: Logits, ids: list[int]) -> None:
    assert np.isfinite(whole).all()
    assert len(set(whole.argmax(axis=1).tolist())) > 20
    assert float(whole.std(axis=0).mean()) > 0.1  # they change along the sequence


@relaxed
@given(data=st.data())
def test_any_chunking_equals_the_whole(
    engine: Engine, ids: list[int], whole: Logits, data: st.DataObject
) -> None:
    sizes: list[int] = []
    while sum(sizes) < LENGTH:
        sizes.append(
            data.draw(st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, 100, 255, 256, 257, 512]))
        )
    with engine.new_sequence() as sequence:
        assert np.array_equal(in_parts(sequence, ids, sizes), whole)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 8])
def test_small_steps_across_every_border_equal_prefill(
    engine: Engine, ids: list[int], whole: Logits, size: int
) -> None:
    """Token by token, as in decoding, and a few at a time: the work is divided otherwise than in prefill."""
    with engine.new_sequence() as sequence:
        for border in BORDERS:
            start, end = border - 6, border + 6
            while sequence.length < start:
                append(sequence, ids[sequence.length : min(start, sequence.length + BATCH_TOKENS)])
            parts = [append(sequence, ids[at : min(at + size, end)]) for at in range(start, end, size)]
            assert np.array_equal(np.concatenate(parts), whole[start:end]), border


def test_step_gives_the_likeliest_token_after_prompts_of_any_length(
    engine: Engine, ids: list[int], whole: Logits
) -> None:
    for length in (1, 2, PAGE, PAGE + 1, CHUNK, BATCH_TOKENS, BATCH_TOKENS + 1, 1101, LENGTH):
        with engine.new_sequence() as sequence:
            token = engine.step([StepInput(sequence, ids[:length])])[0]
            assert token == int(whole[length - 1].argmax())
            assert sequence.length == length


def test_score_is_the_log_softmax_of_the_logits(engine: Engine, ids: list[int], whole: Logits) -> None:
    scores = engine.score(ids)
    assert scores.dtype == np.float32 and scores.shape == (LENGTH - 1,)
    expected = np.take_along_axis(log_softmax(whole[:-1]), np.array(ids[1:])[:, None], axis=1)[:, 0]
    assert np.abs(scores - expected).max() < 1e-5
    assert engine.score(ids[:1]).shape == (0,)


@relaxed
@given(
    keep=st.integers(0, 600), first=st.integers(1, 600), rest=st.integers(1, 200), other=st.integers(0, 2**32)
)
def test_truncate_and_go_on_equals_fresh(
    engine: Engine, ids: list[int], whole: Logits, keep: int, first: int, rest: int, other: int
) -> None:
    """The sequence had other tokens after `keep`; nothing of them may be left."""
    wrong = np.random.default_rng(other).integers(0, engine.config.vocab_size, first).tolist()
    with engine.new_sequence() as sequence:
        engine.step([StepInput(sequence, ids[:keep] + wrong)])
        sequence.truncate(keep)
        assert sequence.length == keep
        assert np.array_equal(append(sequence, ids[keep : keep + rest]), whole[keep : keep + rest])


def test_truncate_gives_pages_back(directory: Path) -> None:
    engine = Engine.load(directory, threads=1, kv_tokens=160)
    assert engine.native.kv_tokens == engine.native.free_tokens == 160
    with engine.new_sequence() as sequence:
        engine.step([StepInput(sequence, [1] * 100)])
        assert engine.native.free_tokens == 160 - 112  # seven pages
        sequence.truncate(97)
        assert engine.native.free_tokens == 160 - 112
        sequence.truncate(96)
        assert engine.native.free_tokens == 160 - 96
        sequence.truncate(0)
        assert engine.native.free_tokens == 160 and sequence.length == 0
        engine.step([StepInput(sequence, [1] * 160)])
        assert engine.native.free_tokens == 0
    assert engine.native.free_tokens == 160


# --- many sequences -----------------------------------------------------------------------------------------


@relaxed
@given(data=st.data())
def test_any_company_equals_alone(engine: Engine, data: st.DataObject) -> None:
    """A few rounds of steps with prompts, chunks and single tokens of several sequences together. Each
    sequence has the tokens that it samples alone, and afterwards the same state."""
    count = data.draw(st.integers(2, 6))
    samplings = [
        data.draw(
            st.sampled_from(
                [Sampling(), Sampling(temperature=1.0, seed=i), Sampling(temperature=0.7, top_k=9)]
            )
        )
        for i in range(count)
    ]
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    fed: list[list[list[int]]] = [[] for _ in range(count)]  # sequence -> the tokens of each of its steps
    sampled: list[list[int]] = [[] for _ in range(count)]
    together = [engine.new_sequence() for _ in range(count)]
    alone = engine.new_sequence()
    try:
        for _ in range(3):
            members = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=count, unique=True))
            sizes = [data.draw(st.sampled_from([1, 1, 2, 5, 17, 60, 300])) for _ in members]
            parts = [rng.integers(0, engine.config.vocab_size, size).tolist() for size in sizes]
            tokens = engine.step(
                [StepInput(together[i], part, samplings[i]) for i, part in zip(members, parts, strict=True)]
            )
            for i, part, token in zip(members, parts, tokens, strict=True):
                fed[i].append(part)
                sampled[i].append(token)
        probe = rng.integers(0, engine.config.vocab_size, 3).tolist()
        for i in range(count):
            alone.truncate(0)
            assert sampled[i] == [engine.step([StepInput(alone, part, samplings[i])])[0] for part in fed[i]]
            assert together[i].length == alone.length == sum(map(len, fed[i]))
            assert np.array_equal(append(together[i], probe), append(alone, probe))
    finally:
        for sequence in [*together, alone]:
            sequence.close()


def test_a_step_with_more_tokens_than_a_native_one_gives_what_its_parts_give(
    engine: Engine, ids: list[int], whole: Logits
) -> None:
    lengths = (700, 3, 512, 600)
    sequences = [engine.new_sequence() for _ in lengths]
    try:
        tokens = engine.step(
            [StepInput(s, ids[:length]) for s, length in zip(sequences, lengths, strict=True)]
        )
        assert tokens == [int(whole[length - 1].argmax()) for length in lengths]
        assert [s.length for s in sequences] == list(lengths)
        for sequence, length in zip(sequences, lengths, strict=True):
            assert np.array_equal(append(sequence, ids[length : length + 2]), whole[length : length + 2])
    finally:
        for sequence in sequences:
            sequence.close()


def test_python_threads_may_use_one_engine_together(engine: Engine, ids: list[int], whole: Logits) -> None:
    wrong: list[int] = []

    def work(offset: int) -> None:
        for length in range(40 + offset, 300, 37):
            with engine.new_sequence() as sequence:
                tokens = [engine.step([StepInput(sequence, ids[:length])])[0]]
                tokens.append(engine.step([StepInput(sequence, [ids[length]])])[0])
            if tokens != whole[length - 1 : length + 1].argmax(axis=1).tolist():
                wrong.append(length)

    before = engine.native.free_tokens
    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []
    assert engine.native.free_tokens == before


# --- the machine --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_changes_nothing(
    directory: Path, ids: list[int], whole: Logits, threads: int
) -> None:
    other = Engine.load(directory, threads=threads)
    assert other.threads == threads
    assert np.array_equal(other.logits(ids), whole)
    # Lengths that no number of threads divides: the rows are shared out differently each time.
    for length in (*range(1, 24), 255, 259, 510, 511):
        assert np.array_equal(other.logits(ids[:length]), whole[:length]), length


def test_two_threads_agree_with_themselves_at_every_length(
    engine: Engine, ids: list[int], whole: Logits
) -> None:
    for length in range(1, 72):
        for _ in range(3):  # a race shows now and then
            assert np.array_equal(engine.logits(ids[:length]), whole[:length]), length


def test_huge_pages_change_nothing(directory: Path, ids: list[int], whole: Logits) -> None:
    assert np.array_equal(Engine.load(directory, threads=1, huge_pages=False).logits(ids), whole)


def test_where_the_weights_lie_in_the_file_changes_nothing(
    directory: Path, ids: list[int], whole: Logits, tmp_path: Path
) -> None:
    """Another program's file: tensors in another order, data at any multiple of 8 bytes, no huge pages."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(directory / "model.safetensors")
    other = rewritten(directory, tmp_path / "other")
    save_file(
        dict(reversed(tensors.items())), other / "model.safetensors", metadata={"format": "pt", "x": "y" * 5}
    )
    assert np.array_equal(Engine.load(other, threads=1, huge_pages=False).logits(ids[:300]), whole[:300])


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_computes_the_same_bits(
    directory: Path, ids: list[int], whole: Logits, isa: str
) -> None:
    other = Engine.load(directory, threads=2, isa=isa)
    assert other.isa == isa
    assert np.array_equal(other.logits(ids[:300]), whole[:300])
    assert np.array_equal(other.score(ids[:100]), Engine.load(directory, threads=1).score(ids[:100]))


def test_every_instruction_set_continues_a_compressed_model_alike(small_4bit_dir: Path) -> None:
    answers = []
    for isa in ISAS:
        engine = Engine.load(small_4bit_dir, threads=1, isa=isa)
        with engine.new_sequence() as sequence:
            tokens = list(range(40))
            answer = []
            for _ in range(24):
                tokens = engine.step([StepInput(sequence, tokens)])
                answer += tokens
        answers.append(answer)
    assert len(ISAS) > 1 and answers == [answers[0]] * len(ISAS)


# --- nothing is left in the cache ---------------------------------------------------------------------------


def test_pages_that_others_used_before_give_the_same(directory: Path, ids: list[int], whole: Logits) -> None:
    engine = Engine.load(directory, threads=2, kv_tokens=640)
    rng = np.random.default_rng(5)
    for _ in range(3):
        others = [engine.new_sequence() for _ in range(4)]
        for _ in range(9):  # they grow in turn, so that nobody's pages lie together
            engine.step(
                [StepInput(s, rng.integers(0, engine.config.vocab_size, 17).tolist()) for s in others]
            )
        assert engine.native.free_tokens == 0
        for index in rng.permutation(4):
            others[index].close()
        with engine.new_sequence() as sequence:
            assert np.array_equal(in_parts(sequence, ids[:640], [400, 1, 1, 38, 200]), whole[:640])


@pytest.mark.parametrize("isa", ISAS)
def test_what_is_not_a_number_stays_with_its_sequence(tmp_path: Path, isa: str) -> None:
    """A damaged embedding row makes every state after it NaN. Neighbours in a step, and later owners of the
    same pages, see nothing of it."""
    bad = 7

    def damage(tensors: Tensors) -> None:
        dtype, array = tensors["model.embed_tokens.weight"]
        spoiled = array.copy()
        spoiled[bad] = 0x7FC0  # NaN
        tensors["model.embed_tokens.weight"] = (dtype, spoiled)

    sound = random_model(PRESETS["afm-nano"], tmp_path / "sound", seed=2)
    engine = Engine.load(rewritten(sound, tmp_path / "bad", tensors=damage), threads=2, isa=isa, kv_tokens=96)
    prompt = list(range(20, 49))
    with engine.new_sequence() as fresh:
        expected = append(fresh, [*prompt, 3])
        keep = [
            token for token in range(engine.config.vocab_size) if token != bad
        ]  # its own logit is NaN, tied
        assert np.isfinite(expected[:, keep]).all()
    with engine.new_sequence() as spoiled, engine.new_sequence() as neighbour:
        engine.step([StepInput(spoiled, [bad] * 40), StepInput(neighbour, prompt)])
        assert np.isnan(append(spoiled, [1])).all()
        assert np.array_equal(append(neighbour, [3])[:, keep], expected[-1:, keep])
    for sizes in ([30], [29, 1], [1] * 30, [1, 1, 3, 12, 13]):
        with engine.new_sequence() as spoiler:
            engine.step([StepInput(spoiler, [bad] * 96)])  # the whole cache
            assert engine.native.free_tokens == 0
            spoiler.truncate(0)
            assert np.array_equal(in_parts(spoiler, [*prompt, 3], sizes)[:, keep], expected[:, keep])


# --- the real model -----------------------------------------------------------------------------------------


def test_the_real_compressed_model_keeps_all_of_it(smollm2_4bit_dir: Path) -> None:
    rng = np.random.default_rng(3)
    ids = rng.integers(0, 49152, 291).tolist()
    one = Engine.load(smollm2_4bit_dir, threads=1, kv_tokens=1024)
    whole = one.logits(ids)
    two = Engine.load(smollm2_4bit_dir, threads=2, huge_pages=False, kv_tokens=1024)
    with two.new_sequence() as sequence, two.new_sequence() as neighbour:
        parts = in_parts(sequence, ids[:280], [1, 14, 3, 200, 37, 25])
        assert np.array_equal(parts, whole[:280])
        steps = []
        for at in range(280, 290):
            company = StepInput(neighbour, rng.integers(0, 49152, 1 + at % 5).tolist())
            steps.append(two.step([company, StepInput(sequence, [ids[at]])])[1])
        assert steps == whole[280:290].argmax(axis=1).tolist()
        assert np.array_equal(append(sequence, ids[290:]), whole[290:])


# --- what an engine says of itself --------------------------------------------------------------------------


def test_the_engine_tells_its_sizes(small_dir: Path, small_4bit_dir: Path, tmp_path: Path) -> None:
    plain, packed = Engine.load(small_dir, threads=1, kv_tokens=33), Engine.load(small_4bit_dir)
    config = plain.config
    projections = sum(rows * columns for rows, columns in config.linear_shapes().values())
    head = config.vocab_size * config.hidden_size
    assert plain.bytes_per_token == 2 * (projections + head)
    assert 0.25 * plain.bytes_per_token < packed.bytes_per_token < 0.5 * plain.bytes_per_token
    assert plain.native.kv_tokens == 48  # whole pages
    assert (
        plain.native.kv_bytes_per_token
        == 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    )
    assert packed.isa == ISAS[0]
    assert packed.native.batch_tokens == BATCH_TOKENS


def test_coarse_tables_run_too(small_dir: Path, tmp_path: Path) -> None:
    """Tables as wide as the matrix, as in the report."""
    compress(small_dir, tmp_path / "coarse", calibration="none", table_columns=4096)
    engine = Engine.load(tmp_path / "coarse", threads=2)
    whole = engine.logits(list(range(100)))
    with engine.new_sequence() as sequence:
        assert np.array_equal(in_parts(sequence, list(range(100)), [1, 1, 6, 30, 62]), whole)
    for isa in ISAS[1:]:
        found = Agreement()
        found.add(whole, Engine.load(tmp_path / "coarse", threads=1, isa=isa).logits(list(range(100))))
        assert found.max_kl < 1e-4
