"""Guided answers of the real compressed model are valid; what cannot be guided is refused."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from pomona._native import LateMask
from pomona.errors import PomonaError
from pomona.runtime.engine import StepInput
from pomona.runtime.generate import generate
from pomona.runtime.guided import Guide, GuidedTokens, Guides
from pomona.runtime.model import Model
from pomona.runtime.sampling import Sampling


@pytest.fixture(scope="module")
def model(smollm2_4bit_dir: Path) -> Model:
    return Model.load(str(smollm2_4bit_dir), threads=2)


def ask(
    model: Model, guide: Guide, question: str = "Tell me about Ada, 36, of London.", **options: Any
) -> str:
    messages = [{"role": "user", "content": question}]
    return model.respond(messages, guide=guide, max_new_tokens=200, **options)


def test_a_pydantic_like_class_gives_its_schema(model: Model) -> None:
    class Person:
        @staticmethod
        def model_json_schema() -> dict[str, Any]:
            age = {"type": "integer", "minimum": 0, "maximum": 150}
            return {"type": "object", "properties": {"x": age}, "required": ["x"]}

    assert 0 <= json.loads(ask(model, Guide.json_schema(Person)))["x"] <= 150


@pytest.mark.parametrize("pattern", [r"[0-9]{4}-[0-9]{2}-[0-9]{2}", r"(yes|no)\.", r"[a-f]{3,8}", r"é{2} 😀"])
def test_a_regular_expression_is_matched_whole(model: Model, pattern: str) -> None:
    assert re.fullmatch(pattern, ask(model, Guide.regex(pattern), sampling=Sampling(temperature=1.0, seed=1)))


@pytest.mark.parametrize(
    "options", [["Paris", "London"], ["a.b", "a+b", "(x|y)", "[z]"], ["😀", "naïve"], ["only"]]
)
def test_one_of_the_choices_is_said(model: Model, options: list[str]) -> None:
    for seed in range(4):
        assert ask(model, Guide.choices(options), sampling=Sampling(temperature=2.0, seed=seed)) in options


def test_a_choice_follows_the_question(model: Model) -> None:
    right, wrong = "The capital of France is Paris.", "The capital of France is turnip soup."
    assert ask(model, Guide.choices([wrong, right]), "What is the capital of France?") == right


def test_a_grammar(model: Model) -> None:
    guide = Guide.lark('start: "<" /[a-z]{1,9}/ ("," /[0-9]/)~1..3 ">"')
    assert re.fullmatch(
        r"<[a-z]{1,9}(,[0-9]){1,3}>", ask(model, guide, sampling=Sampling(temperature=1.0, seed=4))
    )


@pytest.mark.parametrize(
    "guide",
    [
        Guide.regex("(unclosed"),
        Guide.regex(r"(a)\1"),
        Guide.lark("start: missing"),
    ],
    ids=lambda guide: guide.text[:30],
)
def test_what_cannot_be_expressed_is_refused_in_one_line(model: Model, guide: Guide) -> None:
    with pytest.raises(PomonaError, match="cannot be used") as caught:
        ask(model, guide)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("schema", [[], "text", {"x": object()}, None])
def test_what_is_no_schema_is_refused(schema: Any) -> None:
    with pytest.raises(PomonaError, match="json_schema"):
        Guide.json_schema(schema)


def test_unguided_answers_are_unchanged(model: Model) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    before = model.respond(messages, max_new_tokens=16)
    ask(model, Guide.choices(["x", "y"]))
    assert model.respond(messages, max_new_tokens=16) == before


# --- forced tokens and endings ---------------------------------------------------------------------------

PERSON = {
    "type": "object",
    "properties": {
        "full_name": {"type": "string"},
        "home_town": {"type": "string"},
        "age": {"type": "integer"},
    },
    "required": ["full_name", "home_town", "age"],
}
PROMPT = [1, 4093, 198, 19556, 28, 638, 359, 346, 47, 2, 198, 1, 520, 9531, 198]


class Steps:
    """Counts the engine's steps, and the tokens that they bring."""

    def __init__(self, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokens: list[int] = []
        step = model.engine.step

        def counted(inputs: Sequence[StepInput]) -> list[int]:
            self.tokens.append(len(inputs[0].tokens))
            return step(inputs)

        monkeypatch.setattr(model.engine, "step", counted)


def tokens_of(model: Model, guided: GuidedTokens, room: int = 200, **options: Any) -> list[int]:
    sampling = Sampling(**options)
    stop = model.tokenizer.eos_token_ids
    run = generate(
        model.engine,
        PROMPT,
        sampling=sampling,
        max_new_tokens=room,
        stop_ids=stop,
        guide=guided,
        lookup=False,
    )
    return list(run)


def test_forced_tokens_need_no_step_of_their_own(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(model, monkeypatch)
    tokens = tokens_of(model, model.guides.start(Guide.json_schema(PERSON)))
    assert sum(steps.tokens) - len(PROMPT) >= len(tokens) - 1 - 2  # what the end forces enters no step
    assert len(steps.tokens) <= len(tokens) - 8


def test_an_answer_that_is_forced_as_a_whole_needs_no_step(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(model, monkeypatch)
    tokens = tokens_of(model, model.guides.start(Guide.json_schema({"const": {"only": ["this", 1]}})))
    assert json.loads(model.tokenizer.decode(tokens)) == {"only": ["this", 1]}
    assert len(steps.tokens) <= 1


def test_forced_tokens_are_those_that_the_tokenizer_makes(model: Model) -> None:
    schema = {"type": "object", "properties": {"a_rather_long_name": {"type": "boolean"}}}
    schema["required"] = ["a_rather_long_name"]
    forced = model.guides.start(Guide.json_schema(schema)).begin(100)
    whole = model.tokenizer.encode('{"a_rather_long_name":true}')
    assert len(forced) >= 4 and forced == whole[: len(forced)]


@pytest.mark.parametrize("seed", range(4))
def test_the_text_is_the_same_as_that_of_masks_alone_where_nothing_is_forced(model: Model, seed: int) -> None:
    guide = Guide.regex("[a-z ]{40}")
    tokens = tokens_of(model, model.guides.start(guide), temperature=1.0, seed=seed)
    guided, expected = model.guides.start(guide), []
    with model.engine.new_sequence() as sequence:
        new = PROMPT
        while not guided.stopped:
            mask = guided.mask_now().view(np.int32)
            step = StepInput(sequence, new, Sampling(temperature=1.0, seed=seed), mask)
            new = model.engine.step([step])
            expected += new
            guided.accept(new[0])
    assert tokens == expected


@pytest.mark.parametrize("room", [16, 20, 24, 32, 48, 64, 100])
def test_an_answer_ends_within_its_tokens(model: Model, room: int) -> None:
    guided = model.guides.start(Guide.json_schema(PERSON))
    assert guided.shortest is not None
    room = max(room, guided.shortest)
    for seed in range(3):
        guided = model.guides.start(Guide.json_schema(PERSON))
        tokens = tokens_of(model, guided, room, temperature=1.5, seed=seed)
        assert len(tokens) <= room and guided.complete
        jsonschema.validate(json.loads(model.tokenizer.decode(tokens)), PERSON)


def test_an_answer_that_had_to_be_ended_says_so(model: Model) -> None:
    ended = []
    for seed in range(6):  # a model may end in time by itself
        guided = model.guides.start(
            Guide.json_schema({"type": "array", "items": {"type": "string"}, "minItems": 9})
        )
        assert guided.shortest is not None
        tokens = tokens_of(model, guided, guided.shortest + 4, temperature=1.0, seed=seed)
        assert len(json.loads(model.tokenizer.decode(tokens))) >= 9
        ended.append(guided.cut)
    assert any(ended)
    short = model.guides.start(Guide.json_schema({"type": "boolean"}))
    tokens_of(model, short)
    assert short.complete and not short.cut


def test_less_room_than_the_shortest_answer_cuts_it_off(model: Model) -> None:
    guided = model.guides.start(Guide.json_schema(PERSON))
    assert guided.shortest is not None and guided.shortest > 4
    assert len(tokens_of(model, guided, 4)) == 4 and not guided.complete


def test_a_text_with_a_rare_end_is_ended(model: Model) -> None:
    """No habit finds the end of this pattern: the example of the pattern does."""
    guided = model.guides.start(Guide.json_schema({"type": "string", "pattern": "apples?, pears and plums"}))
    tokens = tokens_of(model, guided, 60, temperature=1.0, seed=2)
    assert "pears and plums" in json.loads(model.tokenizer.decode(tokens))


def test_drafts_change_nothing(model: Model) -> None:
    rows = {"type": "array", "items": PERSON, "minItems": 3, "maxItems": 3}
    texts = []
    for lookup in (False, True):
        guided = model.guides.start(Guide.json_schema(rows))
        run = generate(
            model.engine,
            PROMPT,
            sampling=Sampling(),
            max_new_tokens=150,
            stop_ids=model.tokenizer.eos_token_ids,
            guide=guided,
            lookup=lookup,
        )
        texts.append(list(run))
        assert guided.complete
    assert texts[0][:60] == texts[1][:60]


# --- masks that come late --------------------------------------------------------------------------------


def late_mask(model: Model, allowed: list[int]) -> LateMask:
    mask = LateMask((model.engine.config.vocab_size + 31) // 32)
    words = mask.array()
    for token in allowed:
        words[token // 32] |= np.uint32(1 << token % 32)
    return mask


def test_masks_beside_the_step_change_nothing(model: Model) -> None:
    guide = Guide.json_schema({"type": "array", "items": PERSON, "minItems": 2, "maxItems": 2})
    answers = []
    for overlap in (True, False):
        guides = Guides(model.tokenizer, model.engine.config.vocab_size, overlap=overlap)
        answers.append(tokens_of(model, guides.start(guide), temperature=1.0, seed=5))
    assert answers[0] == answers[1]


def test_a_step_waits_for_its_mask(model: Model) -> None:
    mask = late_mask(model, [77])
    mask.begin()
    started, result = threading.Event(), []

    def run() -> None:
        with model.engine.new_sequence() as sequence:
            started.set()
            result.extend(model.engine.step([StepInput(sequence, PROMPT, Sampling(), mask)]))

    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    thread.join(0.2)
    assert thread.is_alive()
    mask.done()
    thread.join(60)
    assert result == [77]


def test_a_late_mask_is_the_mask(model: Model) -> None:
    allowed = [5, 300, 49151]
    with model.engine.new_sequence() as one, model.engine.new_sequence() as two:
        late = StepInput(one, PROMPT, Sampling(), late_mask(model, allowed))
        plain = StepInput(two, PROMPT, Sampling(), late_mask(model, allowed).array().view(np.int32))
        first, second = model.engine.step([late, plain])
    assert first == second and first in allowed


def test_a_late_mask_of_another_size_is_refused(model: Model) -> None:
    with model.engine.new_sequence() as sequence, pytest.raises(PomonaError, match="one bit per token"):
        model.engine.step([StepInput(sequence, PROMPT, Sampling(), LateMask(3))])
    with pytest.raises(ValueError, match="words"):
        LateMask(0)


@pytest.mark.parametrize("overlap", [True, False])
def test_answers_of_many_threads_keep_apart(model: Model, overlap: bool) -> None:
    """With `overlap` the masks of all come from one thread; each goes into its own step."""
    guides = Guides(model.tokenizer, model.engine.config.vocab_size, overlap=overlap)
    options = [f"{letter * 9}-{index}" for index, letter in enumerate("abcdefgh")]
    answers: dict[str, str] = {}

    def run(option: str) -> None:
        tokens = tokens_of(model, guides.start(Guide.regex(f"{option}[xyz]{{8}}")), temperature=1.0)
        answers[option] = model.tokenizer.decode(tokens)

    threads = [threading.Thread(target=run, args=(option,)) for option in options]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert all(re.fullmatch(f"{option}[xyz]{{8}}", answers[option]) for option in options)


def test_a_guide_that_was_misled_says_so_and_stays_broken(model: Model) -> None:
    guided = model.guides.start(Guide.regex("[0-9]{3}"))
    guided.begin(10)
    for _ in range(2):
        with pytest.raises(PomonaError, match="guided generation stopped"):
            guided.advance(model.tokenizer.encode("x")[0])
