"""Every answer satisfies its schema: 330 schemas, by hand, from life and generated; the others are refused.

The quick run takes a small random model, which goes ways that no trained model goes, and gives it little
room: many answers must be brought to their end. `-m slow` takes SmolLM2 as well, greedy and with chance.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import jsonschema_specifications
import numpy as np
import pytest
from guided_checks import check
from guided_generator import generated
from guided_real import REAL, made_by_pydantic
from guided_refused import REFUSED
from guided_schemas import BY_HAND, Schema

from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.random_init import random_model
from pomona.models.tokenizer import Tokenizer
from pomona.runtime.engine import Engine
from pomona.runtime.generate import generate
from pomona.runtime.guided import Guide, Guides
from pomona.runtime.sampling import Sampling

GENERATED = generated(120)
SUITE: dict[str, Schema] = {**BY_HAND, **REAL, **made_by_pydantic(), **GENERATED}
RANDOM = ModelConfig(
    model_type="llama",
    vocab_size=49152,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    max_position_embeddings=4096,
    rope_theta=10_000.0,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
)


@dataclass
class Speaker:
    engine: Engine
    tokenizer: Tokenizer
    guides: Guides

    def answer(self, name: str, schema: Schema, seed: int, room: int) -> str:
        """An answer; seed 0: greedy. It has `room` tokens, or what the shortest answer needs."""
        guided = self.guides.start(Guide.json_schema(schema))
        assert guided.shortest is not None
        question = f"<|im_start|>user\nAn example of {name}, please.<|im_end|>\n<|im_start|>assistant\n"
        tokens = generate(
            self.engine,
            self.tokenizer.encode(question),
            sampling=Sampling(temperature=1.0 if seed else 0.0, seed=seed),
            max_new_tokens=max(room, guided.shortest),
            stop_ids=self.tokenizer.eos_token_ids,
            guide=guided,
            lookup=seed % 2 == 0,
        )
        text = self.tokenizer.decode(list(tokens), skip_special_tokens=False)
        assert guided.complete, f"{name}: is not complete: ...{text[-80:]!r}"
        return text


def speaker(directory: Path) -> Speaker:
    engine, tokenizer = Engine.load(directory, threads=2), Tokenizer.from_directory(directory)
    return Speaker(engine, tokenizer, Guides(tokenizer, engine.config.vocab_size))


@pytest.fixture(scope="module")
def monkey(smollm2_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Speaker:
    """A random model with SmolLM2's vocabulary: every token is about as likely as any other."""
    directory = random_model(RANDOM, tmp_path_factory.mktemp("monkey") / "model", seed=1)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(smollm2_dir / file, directory / file)
    return speaker(directory)


@pytest.fixture(scope="module")
def smollm2(smollm2_4bit_dir: Path) -> Speaker:
    return speaker(smollm2_4bit_dir)


def test_the_suite_is_as_large_as_it_says() -> None:
    assert len(BY_HAND) + len(REAL) >= 190
    assert len(GENERATED) == len({json.dumps(schema) for schema in GENERATED.values()}) == 120
    assert len(SUITE) == len(BY_HAND) + len(REAL) + len(made_by_pydantic()) + len(GENERATED) >= 330
    assert not SUITE.keys() & REFUSED.keys()


@pytest.mark.parametrize("name", SUITE)
def test_every_answer_of_a_random_model_is_valid(monkey: Speaker, name: str) -> None:
    check(SUITE[name], monkey.answer(name, SUITE[name], seed=1 + len(name), room=48))


@pytest.mark.slow
@pytest.mark.parametrize("name", SUITE)
def test_answers_of_a_random_model_are_valid_with_any_room(monkey: Speaker, name: str) -> None:
    for seed, room in enumerate((0, 10, 20, 40, 80, 300), start=101):
        check(SUITE[name], monkey.answer(name, SUITE[name], seed, room))


@pytest.mark.slow
@pytest.mark.parametrize("name", SUITE)
def test_every_answer_of_smollm2_is_valid(smollm2: Speaker, name: str) -> None:
    for seed, room in ((0, 200), (1, 200), (2, 60)):
        check(SUITE[name], smollm2.answer(name, SUITE[name], seed, room))


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_obeyed_is_refused_with_the_reason(monkey: Speaker, name: str) -> None:
    schema, reason = REFUSED[name]
    started = time.perf_counter()
    with pytest.raises(PomonaError, match=reason) as caught:
        monkey.guides.start(Guide.json_schema(schema))
    assert "\n" not in str(caught.value) and str(caught.value).startswith("json_schema")
    assert time.perf_counter() - started < 60


# --- every keyword of every draft is obeyed or refused ---------------------------------------------------

# keyword -> a schema with it, texts that satisfy it, texts that do not.
OBEYED: dict[str, tuple[Schema, list[str], list[str]]] = {
    "type": ({"type": "boolean"}, ["true"], ["1", "null"]),
    "enum": ({"enum": ["a", 1]}, ['"a"', "1"], ['"b"', "2", "true"]),
    "const": ({"const": [1]}, ["[1]"], ["[2]", "1"]),
    "minimum": ({"type": "number", "minimum": 2.5}, ["2.5", "9"], ["2.4", "-3"]),
    "maximum": ({"type": "number", "maximum": 2.5}, ["2.5", "-9"], ["2.6", "30"]),
    "exclusiveMinimum": ({"type": "number", "exclusiveMinimum": 56, "maximum": 56.5}, ["56.1"], ["56", "55"]),
    "exclusiveMaximum": (
        {"type": "number", "minimum": -53.5, "exclusiveMaximum": -53},
        ["-53.5", "-53.1"],
        ["-53", "-52", "-53.0", "-53.00000000000000000001"],
    ),
    "multipleOf": ({"type": "integer", "multipleOf": 7}, ["7", "-14", "0"], ["8", "1"]),
    "minLength": ({"type": "string", "minLength": 2}, ['"ab"', '"é😀"'], ['"a"', '""', '"😀"']),
    "maxLength": ({"type": "string", "maxLength": 2}, ['""', '"é😀"', r'"\n\u0001"'], ['"abc"', '"abcd"']),
    "pattern": ({"type": "string", "pattern": r"^\d$|x"}, ['"3"', '"axb"'], ['"33"', '"٣"', '""']),
    "format": (
        {"type": "string", "format": "date"},
        ['"2024-02-28"'],
        ['"2023-02-29"', '"0000-01-01"', '"x"'],
    ),
    "items": ({"type": "array", "items": {"type": "null"}}, ["[]", "[null]"], ["[1]", "[null,1]"]),
    "prefixItems": ({"type": "array", "prefixItems": [{"const": 1}]}, ["[]", "[1]", "[1,2]"], ["[2]"]),
    "additionalItems": (
        {"$schema": "http://json-schema.org/draft-07/schema#", "items": [True], "additionalItems": False},
        ["[1]"],
        ["[1,2]"],
    ),
    "minItems": ({"type": "array", "minItems": 2}, ["[1,2]", "[1,2,3]"], ["[1]", "[]"]),
    "maxItems": ({"type": "array", "maxItems": 1}, ["[1]", "[]"], ["[1,2]"]),
    "properties": ({"type": "object", "properties": {"a": {"const": 1}}}, ['{"a":1}', "{}"], ['{"a":2}']),
    "required": ({"type": "object", "properties": {"a": True}, "required": ["a"]}, ['{"a":2}'], ["{}"]),
    "additionalProperties": (
        {"type": "object", "properties": {"a": True}, "additionalProperties": {"const": 1}},
        ['{"a":2}', '{"b":1}'],
        ['{"b":2}'],
    ),
    "patternProperties": (
        {"type": "object", "patternProperties": {"^a": {"const": 1}}},
        ['{"ab":1}', '{"b":2}'],
        ['{"ab":2}', '{"a":2}'],
    ),
    "minProperties": ({"type": "object", "minProperties": 1}, ['{"a":1}'], ["{}"]),
    "maxProperties": ({"type": "object", "maxProperties": 1}, ["{}", '{"a":1}'], ['{"a":1,"b":2}']),
    "allOf": ({"allOf": [{"type": "integer"}, {"minimum": 3}]}, ["3"], ["2", '"a"']),
    "anyOf": ({"anyOf": [{"type": "null"}, {"const": 3}]}, ["3", "null"], ["2"]),
    "oneOf": ({"oneOf": [{"type": "null"}, {"const": 3}]}, ["3", "null"], ["2"]),
    "$ref": ({"$defs": {"x": {"const": 3}}, "$ref": "#/$defs/x"}, ["3"], ["2"]),
}
# They hold schemas or say things about them, and ask nothing of an answer.
SILENT = {
    "$defs",
    "definitions",
    "$schema",
    "$id",
    "id",
    "$comment",
    "title",
    "description",
    "default",
    "examples",
}
SILENT |= {"deprecated", "readOnly", "writeOnly", "contentMediaType", "contentEncoding", "contentSchema"}


# Of draft 3, and what belongs to the references that are refused.
OTHERS = {"$recursiveAnchor", "$dynamicAnchor", "divisibleBy", "disallow", "extends"}


def all_keywords() -> set[str]:
    """Out of the published meta-schemas of all drafts."""
    found: set[str] = set()
    for address in jsonschema_specifications.REGISTRY:
        schema = jsonschema_specifications.REGISTRY.contents(address)
        found |= set(schema.get("properties", ()))
    return found


def allows(speaker: Speaker, schema: Schema, answer: str) -> bool:
    """Whether a schema lets a model give this answer, token by token."""
    guided = speaker.guides.start(Guide.json_schema(schema))
    for token in speaker.tokenizer.encode(answer):
        if not np.unpackbits(guided.mask_now().view(np.uint8), bitorder="little")[token]:
            return False
        guided.accept(token)
    return guided.complete


def test_every_keyword_of_every_draft_is_obeyed_refused_or_silent() -> None:
    refused = {key for schema, _ in REFUSED.values() for key in schema if key not in OBEYED}
    known = all_keywords()
    assert len(known) > 50
    assert known - OBEYED.keys() - SILENT - refused == OTHERS


@pytest.mark.parametrize("key", [*sorted(OTHERS), "anything else"])
def test_other_keywords_are_refused(monkey: Speaker, key: str) -> None:
    with pytest.raises(PomonaError, match="cannot be obeyed"):
        monkey.guides.start(Guide.json_schema({key: True}))


@pytest.mark.parametrize("key", OBEYED)
def test_a_keyword_is_obeyed(monkey: Speaker, key: str) -> None:
    schema, good, bad = OBEYED[key]
    assert key in schema
    for answer in good:
        check(schema, answer)
        assert allows(monkey, schema, answer), answer
    for answer in bad:
        assert not allows(monkey, schema, answer), answer


@pytest.mark.parametrize("key", sorted(SILENT))
def test_a_silent_keyword_changes_nothing(monkey: Speaker, key: str) -> None:
    value = "http://json-schema.org/draft-07/schema#" if key == "$schema" else {} if "ef" in key else "text"
    schema = {key: value, "type": "integer", "maximum": 5}
    assert (
        allows(monkey, schema, "3") and not allows(monkey, schema, "6") and not allows(monkey, schema, '"a"')
    )
