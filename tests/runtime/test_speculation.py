"""Drafts change the time of an answer and nothing else: its tokens are those of steps without drafts, greedy
or drawn, and so is everything that comes after it, whatever was guessed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_adapters import write_adapter

from pomona.data.builtin_text import evaluation_text
from pomona.errors import PomonaError
from pomona.models.presets import PRESETS
from pomona.models.random_init import random_model
from pomona.runtime.adapters import load_adapter
from pomona.runtime.engine import BATCH_TOKENS, Engine, Sequence, StepInput
from pomona.runtime.generate import generate
from pomona.runtime.guided import Guide
from pomona.runtime.lookup import MAX_DRAFTS, Lookup, StepCosts
from pomona.runtime.model import Model
from pomona.runtime.sampling import Sampling

PAGE = 16
GREEDY = Sampling()
SAMPLINGS = [
    GREEDY,
    Sampling(temperature=0.7, seed=11),
    Sampling(temperature=1.0, top_k=20, top_p=0.9, seed=12),
    Sampling(repetition_penalty=1.3),
    Sampling(temperature=0.6, repetition_penalty=1.1, min_p=0.02, seed=13),
]
relaxed = settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Eager(StepCosts):
    """As if further rows cost nothing: drafts at every occasion, right or wrong."""

    def seconds(self, rows: int) -> float | None:
        return 1.0


class Reckless(Lookup):
    """Always MAX_DRAFTS drafts; those that follow what it finds, then nonsense."""

    def propose(self, limit: int = MAX_DRAFTS, rows: int = 1, stop_ids: Collection[int] = ()) -> list[int]:
        drafts = super().propose(limit, rows, stop_ids)
        nonsense = ((len(self._tokens) * 7 + i) % 500 for i in range(min(limit, MAX_DRAFTS) - len(drafts)))
        drafts += [token for token in nonsense if token not in stop_ids]
        self._drafts = len(drafts)
        return drafts


def tokens(engine: Engine, count: int, seed: int = 0) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(0, engine.config.vocab_size, count)]


def written(
    engine: Engine,
    prompt: list[int],
    sampling: Sampling = GREEDY,
    count: int = 40,
    *,
    lookup: Lookup | bool = False,
    stop_ids: Collection[int] = (),
    sequence: Sequence | None = None,
) -> list[int]:
    return list(
        generate(
            engine,
            prompt,
            sampling=sampling,
            max_new_tokens=count,
            stop_ids=stop_ids,
            lookup=lookup,
            sequence=sequence,
        )
    )


def eager(prompt: list[int]) -> Lookup:
    return Lookup(prompt, Eager())


def next_logits(sequence: Sequence, token: int = 3) -> np.ndarray:
    out = np.empty((1, sequence.engine.config.vocab_size), np.float32)
    sequence.engine.native.logits(sequence.handle, np.array([token], np.int32), out)
    return out[0]


@pytest.fixture(scope="module")
def engine(small_4bit_dir: Path) -> Engine:
    return Engine.load(small_4bit_dir, threads=1)


# --- one step -----------------------------------------------------------------------------------------------


@relaxed
@given(data=st.data())
def test_any_drafts_give_what_single_steps_give(engine: Engine, data: st.DataObject) -> None:
    """Right beginnings of any length, wrong ends of any length, at and across the borders of pages."""
    sampling = data.draw(st.sampled_from(SAMPLINGS))
    prompt = tokens(engine, data.draw(st.integers(1, 40)), seed=data.draw(st.integers(0, 99)))
    plain = written(engine, prompt, sampling, 60)
    with engine.new_sequence() as sequence, engine.new_sequence() as other:
        got = engine.step([StepInput(sequence, prompt, sampling)])
        while len(got) < 45:
            right = plain[len(got) : len(got) + data.draw(st.sampled_from([0, 0, 1, 2, 3, 5, 14, 15, 16]))]
            wrong = data.draw(st.sampled_from([0, 1, 2, 17, 40])) * [7]
            new = engine.step_with_drafts(
                [StepInput(sequence, got[-1:], sampling, drafts=[*right[: 59 - len(got)], *wrong])]
            )[0]
            assert len(new) > min(len(right), 59 - len(got))
            got += new
            assert sequence.length == len(prompt) + len(got) - 1
        assert got[:60] == plain[: len(got)]
        engine.step([StepInput(other, prompt + got[:-1])])
        assert np.array_equal(next_logits(sequence), next_logits(other))


def test_right_drafts_are_accepted_all_and_wrong_ones_from_the_first_on(engine: Engine) -> None:
    prompt = tokens(engine, 20)
    plain = written(engine, prompt, count=10)
    wrong = (plain[3] + 1) % engine.config.vocab_size
    for drafts, accepted in (
        (plain[1:8], 7),
        ([], 0),
        ([plain[1], plain[2], wrong, plain[4]], 2),
        ([wrong, *plain[2:4]], 0),
    ):
        with engine.new_sequence() as sequence:
            engine.step([StepInput(sequence, prompt)])
            new = engine.step_with_drafts([StepInput(sequence, plain[:1], drafts=drafts)])[0]
            assert new == plain[1 : 2 + accepted] and sequence.length == 21 + accepted


def test_drafts_may_follow_a_whole_prompt(engine: Engine) -> None:
    prompt = tokens(engine, 50)
    plain = written(engine, prompt, count=6)
    with engine.new_sequence() as sequence:
        new = engine.step_with_drafts([StepInput(sequence, prompt, drafts=[*plain[:4], 1, 2, 3])])[0]
        assert new == plain[: len(new)] and len(new) >= 5 and sequence.length == 49 + len(new)


def test_neighbours_in_a_step_keep_their_tokens(small_dir: Path, tmp_path: Path) -> None:
    """A mixed batch: adapters, several samplings, a prompt, with and without drafts."""
    engine = Engine.load(small_dir, threads=2)
    adapter = load_adapter(engine, write_adapter(tmp_path / "a", engine.config))
    kinds = [(None, GREEDY), (adapter, GREEDY), (adapter, SAMPLINGS[1]), (None, SAMPLINGS[4])]
    prompts = [tokens(engine, 13 + 9 * i, seed=i) for i in range(4)]
    plain = []
    for prompt, (own, sampling) in zip(prompts, kinds, strict=True):
        with engine.new_sequence(own) as sequence:
            plain.append(written(engine, prompt, sampling, 30, sequence=sequence))
    assert plain[1] != written(engine, prompts[1], count=30), "the adapter has a say"
    sequences = [engine.new_sequence(own) for own, _ in kinds]
    got: list[list[int]] = [[] for _ in kinds]
    rng = np.random.default_rng(4)
    late = engine.new_sequence()
    late_prompt = tokens(engine, 70, seed=50)
    for round_ in range(12):
        inputs = []
        for sequence, prompt, (_, sampling), done, answer in zip(
            sequences, prompts, kinds, got, plain, strict=True
        ):
            right = answer[len(done) : len(done) + int(rng.integers(0, 5))] if done else []
            inputs.append(
                StepInput(sequence, done[-1:] or prompt, sampling, drafts=[*right, *[9] * (round_ % 3)])
            )
        if round_ == 5:
            inputs.append(StepInput(late, late_prompt))
        results = engine.step_with_drafts(inputs)
        for done, new in zip(got, results, strict=False):
            done += new
        if round_ == 5:
            assert results[4] == written(engine, late_prompt, count=1)
    assert all(
        len(done) > 12 and done[:30] == answer[: len(done)] for done, answer in zip(got, plain, strict=True)
    )
    for sequence in [*sequences, late]:
        sequence.close()


@pytest.mark.parametrize("length", [14, 15, 16, 17, 31, 32, 33])
@pytest.mark.parametrize("drafts", [1, 15, 16, 17, 33])
def test_refused_drafts_give_their_pages_back(engine: Engine, length: int, drafts: int) -> None:
    prompt = tokens(engine, length)
    plain = written(engine, prompt, count=2)
    with engine.new_sequence() as sequence:
        engine.step([StepInput(sequence, prompt)])
        engine.step_with_drafts([StepInput(sequence, plain[:1], drafts=[plain[1] ^ 1] * drafts)])
        pages = -(-(length + 1) // PAGE)
        assert engine.native.kv_tokens - engine.native.free_tokens == pages * PAGE


# --- what is refused ----------------------------------------------------------------------------------------


def test_bad_drafts_are_refused_and_change_nothing(engine: Engine) -> None:
    prompt = tokens(engine, 20)
    vocabulary = engine.config.vocab_size
    words = (vocabulary + 31) // 32
    some = np.full(words, -1, np.int32)
    with engine.new_sequence() as sequence:
        first = engine.step([StepInput(sequence, prompt)])
        one = StepInput(sequence, first)
        for bad, message in (
            (replace(one, drafts=[vocabulary]), f"token id {vocabulary} is outside the vocabulary"),
            (replace(one, drafts=[1, -1]), "token id -1 is outside the vocabulary"),
            (replace(one, drafts=[1] * BATCH_TOKENS), "a step with drafts takes 512, bring fewer"),
            (replace(one, drafts=[1, 2], mask=some), "a token mask needs one bit per token"),
            (replace(one, drafts=[1, 2], mask=np.stack([some] * 2)), "a token mask needs one bit per token"),
            (replace(one, tokens=[], drafts=[1]), "an input without tokens"),
        ):
            with pytest.raises(PomonaError, match=message):
                engine.step_with_drafts([bad])
            assert sequence.length == 20
        with pytest.raises(PomonaError, match=r"several tokens at once; call step_with_drafts\(\)"):
            engine.step([replace(one, drafts=[1])])
        assert engine.step_with_drafts([one]) == [engine_after(engine, prompt + first)]


def engine_after(engine: Engine, prompt: list[int]) -> list[int]:
    return written(engine, prompt, count=1)


# --- whole answers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_answers_are_the_same_with_and_without(engine: Engine, sampling: Sampling) -> None:
    accepted = 0
    for seed in range(2):
        prompt = tokens(engine, 30, seed) * 2
        plain = written(engine, prompt, sampling, 60)
        for lookup in (True, eager(prompt), Reckless(prompt, Eager())):
            assert written(engine, prompt, sampling, 60, lookup=lookup) == plain
            accepted += lookup.accepted if isinstance(lookup, Lookup) else 0
    # Random models repeat themselves when they are greedy.
    assert accepted > 40 or sampling != GREEDY


def test_answers_of_an_adapter_are_the_same(engine: Engine, tmp_path: Path) -> None:
    adapter = load_adapter(engine, write_adapter(tmp_path / "a", engine.config, seed=3))
    prompt = tokens(engine, 25)
    answers = []
    for lookup in (False, eager(prompt), Reckless(prompt, Eager())):
        with engine.new_sequence(adapter) as sequence:
            answers.append(written(engine, prompt, count=60, lookup=lookup, sequence=sequence))
            assert sequence.length == 25 + 59
    assert answers[0] == answers[1] == answers[2] != written(engine, prompt, count=60)


CONTEXT = 64
TINY = replace(
    PRESETS["afm-nano"],
    vocab_size=512,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    head_dim=16,
    max_position_embeddings=CONTEXT,
)


@pytest.fixture(scope="module")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(TINY, tmp_path_factory.mktemp("speculation") / "tiny", seed=8, perturb_norms=True)


@pytest.fixture(scope="module")
def tiny(tiny_dir: Path) -> Engine:
    return Engine.load(tiny_dir, threads=1, kv_tokens=256)


@pytest.mark.parametrize("length", [1, 2, 40, CONTEXT - 3, CONTEXT - 2, CONTEXT - 1])
def test_the_context_ends_an_answer_at_the_same_token(tiny: Engine, length: int) -> None:
    prompt = ([5, 6, 7, 8] * 16)[:length]
    plain = written(tiny, prompt, count=1000)
    assert len(plain) == CONTEXT - length
    assert written(tiny, prompt, count=1000, lookup=eager(prompt)) == plain
    assert written(tiny, prompt, count=1000, lookup=Reckless(prompt, Eager())) == plain


def test_a_small_cache_ends_it_at_the_same_token(tiny_dir: Path, tiny: Engine) -> None:
    small = Engine.load(tiny_dir, threads=1, kv_tokens=48)
    prompt = [5, 6, 7, 8] * 4
    plain = written(tiny, prompt, count=32)
    assert written(small, prompt, count=1000, lookup=Reckless(prompt, Eager())) == plain
    assert small.native.free_tokens == 48


def test_where_only_drafts_find_no_room_the_step_goes_without_them(tiny_dir: Path) -> None:
    engine = Engine.load(tiny_dir, threads=1, kv_tokens=64)
    prompt = [5, 6, 7] * 5
    plain = written(engine, prompt, count=17)
    with engine.new_sequence() as other, engine.new_sequence() as sequence:
        engine.step([StepInput(other, [1] * 32)])
        engine.step([StepInput(sequence, prompt)])
        right = StepInput(sequence, plain[:1], drafts=plain[1:-1])
        assert engine.step_with_drafts([right]) == [plain[1:]]
        sequence.truncate(15)
        engine.step([StepInput(other, [1] * 16)])  # all pages are taken; in the last one is room for a token
        assert engine.native.free_tokens == 0
        assert engine.step_with_drafts([right]) == [plain[1:2]] and sequence.length == 16
        with pytest.raises(PomonaError, match="cache is full"):
            engine.step_with_drafts([StepInput(sequence, plain[1:2], drafts=plain[2:4])])
        assert sequence.length == 16


@pytest.mark.parametrize("lookup_type", [Lookup, Reckless])
def test_max_new_tokens_and_the_sequence_afterwards(tiny: Engine, lookup_type: type[Lookup]) -> None:
    prompt = [5, 6, 7, 8, 9]
    plain = written(tiny, prompt, count=24)
    for count in range(25):
        with tiny.new_sequence() as sequence:
            lookup = lookup_type(prompt, Eager())
            assert written(tiny, prompt, count=count, lookup=lookup, sequence=sequence) == plain[:count]
            assert sequence.length == (len(prompt) + count - 1 if count else 0)


@pytest.mark.parametrize("lookup_type", [Lookup, Reckless])
def test_stop_ids_inside_a_draft_and_the_sequence_afterwards(tiny: Engine, lookup_type: type[Lookup]) -> None:
    prompt = [5, 6, 7, 8, 9]
    plain = written(tiny, prompt, count=40)
    for stop in {*plain, 511}:
        expected = plain[: plain.index(stop)] if stop in plain else plain
        with tiny.new_sequence() as sequence:
            lookup = lookup_type(prompt, Eager())
            got = written(tiny, prompt, count=40, lookup=lookup, stop_ids={stop}, sequence=sequence)
            assert got == expected
            assert sequence.length == len(prompt) + len(expected) - (0 if stop in plain else 1)


def test_a_reader_who_leaves_leaves_the_sequence_where_he_was(tiny: Engine) -> None:
    prompt = [5, 6, 7, 8, 9]
    plain = written(tiny, prompt, count=40)
    for read in range(1, 38):
        with tiny.new_sequence() as sequence:
            lookup = eager(prompt)
            answer = generate(
                tiny,
                prompt,
                sampling=GREEDY,
                max_new_tokens=40,
                stop_ids=(),
                sequence=sequence,
                lookup=lookup,
            )
            assert [next(answer) for _ in range(read)] == plain[:read]
            answer.close()  # type: ignore[attr-defined]
            assert sequence.length == len(prompt) + read - 1
            assert written(tiny, plain[read - 1 : read], count=3, sequence=sequence) == plain[read : read + 3]
    assert lookup.accepted > 5


def test_a_sequence_that_is_closed_first_does_no_harm(tiny: Engine) -> None:
    sequence = tiny.new_sequence()
    answer = generate(
        tiny, [5, 6] * 9, sampling=GREEDY, max_new_tokens=40, stop_ids=(), sequence=sequence, lookup=True
    )
    next(answer)
    sequence.close()
    answer.close()  # type: ignore[attr-defined]
    assert tiny.native.free_tokens == tiny.native.kv_tokens


# --- the prefix cache ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [15, 16, 20, 31])
def test_only_accepted_pages_are_shared(small_dir: Path, length: int) -> None:
    """A: an answer with drafts that are refused, some of which fill pages. B: what was refused, as a prompt.
    A again. All as without a cache."""
    cached, plain = (Engine.load(small_dir, threads=1, prefix_cache=on) for on in (True, False))
    prompt = tokens(plain, length)
    answer = written(plain, prompt, count=80)
    wrong = [(answer[2] + 1) % plain.config.vocab_size, *tokens(plain, 60, seed=9)]
    with cached.new_sequence() as sequence:
        got = cached.step([StepInput(sequence, prompt)])
        got += cached.step_with_drafts([StepInput(sequence, got, drafts=[answer[1], *wrong])])[0]
        assert got == answer[:3]
        accepted = length + 2
        refused = prompt + answer[:2] + wrong
        with cached.new_sequence() as other:
            assert cached.step([StepInput(other, refused)]) == written(plain, refused, count=1)
            assert other.reused_tokens == accepted // PAGE * PAGE
        while len(got) < 60:  # it goes on, with drafts that are right for two pages and wrong for two
            drafts = answer[len(got) : len(got) + 32] + wrong[:32]
            got += cached.step_with_drafts([StepInput(sequence, got[-1:], drafts=drafts)])[0]
        assert got == answer[: len(got)]
    for prompt_ids in (prompt + answer[:50], refused, prompt + answer[:50]):
        with cached.new_sequence() as sequence, plain.new_sequence() as fresh:
            assert cached.step([StepInput(sequence, prompt_ids)]) == plain.step(
                [StepInput(fresh, prompt_ids)]
            )
            assert sequence.reused_tokens == (len(prompt_ids) - 1) // PAGE * PAGE
            assert np.array_equal(next_logits(sequence), next_logits(fresh))
    assert cached.native.free_tokens == cached.native.kv_tokens


def test_answers_in_turn_on_a_cache_that_is_always_full(small_dir: Path) -> None:
    cached = Engine.load(small_dir, threads=1, prefix_cache=True, kv_tokens=160)
    plain = Engine.load(small_dir, threads=1)
    for seed in (0, 1, 0):
        prompt = tokens(plain, 50, seed)
        for lookup in (eager(prompt), Reckless(prompt, Eager())):
            assert written(cached, prompt, count=60, lookup=lookup) == written(plain, prompt, count=60)
    assert cached.native.free_tokens == 160


# --- the real model -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(smollm2_4bit_dir: Path) -> Model:
    return Model.load(str(smollm2_4bit_dir), threads=1)


PASSAGE = " ".join(evaluation_text().split()[:60])
REQUESTS = {
    "proofreading": "Correct the spelling of this text and repeat all of it.\n\nText: "
    + PASSAGE.replace("e", "ee", 7),
    "summarising": f"Summarise this text in one sentence.\n\nText: {PASSAGE}",
    "chat": "What is the difference between weather and climate?",
}


@pytest.mark.parametrize("request_", sorted(REQUESTS))
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.4, top_p=0.95, seed=3)])
def test_real_answers_are_the_same(model: Model, request_: str, sampling: Sampling) -> None:
    ids = model.render([{"role": "user", "content": REQUESTS[request_]}])
    stop_ids = model.tokenizer.eos_token_ids
    plain = written(model.engine, ids, sampling, 60, stop_ids=stop_ids)
    for lookup in (True, eager(ids), Reckless(ids, Eager())):
        assert written(model.engine, ids, sampling, 60, stop_ids=stop_ids, lookup=lookup) == plain
    if request_ == "proofreading" and sampling == GREEDY:
        assert lookup.accepted > len(plain) / 2, "the answer repeats the text"


GUIDES: list[dict[str, Any]] = [
    {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "city": {"enum": ["London", "Paris"]}},
        "required": ["name", "city"],
        "additionalProperties": False,
    },
    {
        "type": "array",
        "items": {"type": "integer", "maximum": 99, "minimum": 0},
        "minItems": 3,
        "maxItems": 9,
    },
    {"type": "string", "maxLength": 40},
]


@pytest.mark.parametrize("schema", GUIDES)
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.2, seed=5)])
def test_guided_answers_are_the_same(model: Model, schema: dict[str, Any], sampling: Sampling) -> None:
    ids = model.render(
        [{"role": "user", "content": 'Repeat: {"name":"Ada","city":"London"}, [1,2,3,4,1,2,3,4], "Ada"'}]
    )
    answers = []
    for lookup in (False, eager(ids), Reckless(ids, Eager()), True):
        answer = generate(
            model.engine,
            ids,
            sampling=sampling,
            max_new_tokens=60,
            stop_ids=model.tokenizer.eos_token_ids,
            guide=model.guides.start(Guide.json_schema(schema)),
            lookup=lookup,
        )
        answers.append(list(answer))
    assert answers[0] and answers == answers[:1] * 4


def test_masks_along_drafts_are_those_of_one_token_after_the_other(model: Model) -> None:
    guide = Guide.json_schema(GUIDES[0])
    answer = model.tokenizer.encode('{"name":"Ada","city":"Paris"}')
    state, reference = model.guides.start(guide), model.guides.start(guide)
    expected = []
    for token in answer:
        expected.append(reference.mask().copy())
        reference.accept(token)
    assert reference.stopped
    for at in range(len(answer)):
        for count in range(6):
            drafts = answer[at : at + count]
            allowed, masks = state.masks(drafts)
            # The last token completes the answer: it is not drafted.
            assert allowed == drafts[: len(answer) - 1 - at] and masks.shape[0] == 1 + len(allowed)
            assert np.array_equal(masks, np.stack(expected[at : at + len(masks)]))
            wrong, _ = state.masks([*answer[at : at + 1], answer[at]] if at == 0 else [answer[0]] * 2)
            assert len(wrong) < 2, "what the grammar forbids is cut off"
        assert np.array_equal(state.mask(), expected[at]), "looking ahead leaves the state alone"
        state.accept(answer[at])
    assert state.stopped
