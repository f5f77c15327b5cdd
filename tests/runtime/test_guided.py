"""Guided answers of the real compressed model are valid; what cannot be guided is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from pomona.errors import PomonaError
from pomona.runtime.guided import Guide
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


LEAVES: list[dict[str, Any]] = [
    {"type": "string", "maxLength": 12},
    {"type": "integer", "minimum": 0, "maximum": 999},
    {"type": "number", "minimum": 0, "maximum": 10},
    {"type": "boolean"},
    {"type": "null"},
    {"enum": ["red", "green", 3, None]},
    {"const": {"a": 1}},
    {"type": "string", "pattern": "^[a-z]{2,5}$"},
    {"type": "string", "format": "date"},
    {"anyOf": [{"type": "boolean"}, {"type": "integer", "minimum": 1, "maximum": 9}]},
]


def wrapped(leaf: dict[str, Any]) -> list[dict[str, Any]]:
    """The leaf alone, in an object, optional, in a list, and through a reference."""
    closed = {"additionalProperties": False}
    return [
        leaf,
        {"type": "object", "properties": {"x": leaf}, "required": ["x"], **closed},
        {"type": "object", "properties": {"x": leaf, "y": leaf}, "required": ["y"], **closed},
        {"type": "array", "items": leaf, "minItems": 1, "maxItems": 3},
        {
            "$defs": {"item": leaf},
            "type": "object",
            "properties": {"list": {"type": "array", "items": {"$ref": "#/$defs/item"}, "maxItems": 2}},
            "required": ["list"],
            **closed,
        },
    ]


SCHEMAS = [schema for leaf in LEAVES for schema in wrapped(leaf)]


@pytest.mark.parametrize("index", range(len(SCHEMAS)))
def test_every_answer_validates(model: Model, index: int) -> None:
    schema = SCHEMAS[index]
    for sampling in (Sampling(), Sampling(temperature=1.5, seed=index)):
        jsonschema.validate(json.loads(ask(model, Guide.json_schema(schema), sampling=sampling)), schema)


def test_a_pydantic_like_class_gives_its_schema(model: Model) -> None:
    class Person:
        @staticmethod
        def model_json_schema() -> dict[str, Any]:
            return wrapped({"type": "integer", "minimum": 0, "maximum": 150})[1]

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
        Guide.json_schema({"type": "string", "contentEncoding": "base64", "not": {"const": "x"}}),
        Guide.json_schema({"type": "array", "uniqueItems": True, "contains": {"type": "integer"}}),
        Guide.json_schema({"type": "nonsense"}),
        Guide.json_schema({"$ref": "#/missing"}),
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
