"""The form of an answer: free text, a schema, a regular expression, choices or a grammar; and reading it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from pomona.errors import PomonaError
from pomona.runtime.guided import Guide
from pomona.runtime.reply import AnswerError, FinishReason
from pomona.runtime.transcript import first_problem

# What Pydantic raises for a type that has no schema.
UNFIT = (PydanticUserError, PydanticSchemaGenerationError, TypeError)


@dataclass(frozen=True)
class Output:
    """The form of one answer. Make it by `wanted`."""

    kind: Literal["text", "schema", "regex", "choices", "grammar"] = "text"
    guide: Guide | None = None
    schema: dict[str, Any] | None = None  # of "schema": JSON schema
    python: TypeAdapter[Any] | None = None  # of "schema", when a Python type was given
    options: tuple[str, ...] = ()  # of "choices"

    def read(self, text: str, finish_reason: FinishReason, max_new_tokens: int) -> Any:
        """The content of a complete answer. AnswerError when it was cut off, or a validator refuses it."""
        if self.kind == "text":
            return text
        try:
            if self.kind == "schema":
                return json.loads(text) if self.python is None else self.python.validate_json(text)
            if finish_reason == "length" and text not in self.options:
                raise ValueError("it ended too early")
            return text
        except ValidationError as error:
            problem = first_problem(error)
        except (ValueError, RecursionError) as error:
            problem = str(error)
        if finish_reason == "length":
            raise AnswerError(
                f"the answer was cut off after max_new_tokens = {max_new_tokens:,} tokens and is no "
                f"complete {self.kind}; raise max_new_tokens, or bound the texts and lists in it",
                text,
            )
        raise AnswerError(f"the answer is not valid ({problem}); ask again, or relax the validator", text)


TEXT = Output()


def wanted(
    *,
    schema: Any = None,
    regex: str | None = None,
    choices: Sequence[str] | None = None,
    grammar: str | None = None,
) -> Output:
    """The Output of one of these options; free text when none is given.

    schema: a dict is a JSON schema, anything else a Python type that Pydantic understands (a BaseModel class,
    a dataclass, list[int], Literal[...]).
    """
    given = {"schema": schema, "regex": regex, "choices": choices, "grammar": grammar}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise PomonaError(f"{' and '.join(names)}: an answer has one form; give one of them")
    if isinstance(schema, dict):
        return Output("schema", Guide.json_schema(schema), schema)
    if schema is not None:
        adapter, found = python_schema(schema)
        return Output("schema", Guide.json_schema(found), found, adapter)
    if regex is not None:
        return Output("regex", Guide.regex(_text("regex", regex)))
    if choices is not None:
        if isinstance(choices, str) or not isinstance(choices, Sequence):
            raise PomonaError("choices: must be a list of texts")
        return Output("choices", Guide.choices(choices), options=tuple(choices))
    if grammar is not None:
        return Output("grammar", Guide.lark(_text("grammar", grammar)))
    return TEXT


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise PomonaError(f"{name}: must be a text that is not empty")
    return value


def python_schema(kind: Any) -> tuple[TypeAdapter[Any], dict[str, Any]]:
    """A Python type's validator and its JSON schema, with objects closed unless the type allows more keys."""
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(kind)
        return adapter, closed(adapter.json_schema())
    except UNFIT as error:
        message = str(error).splitlines()[0]
        raise PomonaError(
            f"schema: {kind!r} has no JSON schema ({message}); give a Pydantic class, another type that "
            "Pydantic understands, or a JSON schema as a dict"
        ) from error


def closed(schema: Any) -> Any:
    """The schema without room for keys that nobody named: a small model would fill it with inventions."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("properties", "$defs", "patternProperties") and isinstance(value, dict):
            result[key] = {name: closed(item) for name, item in value.items()}
        elif key in ("const", "enum", "default", "examples"):
            result[key] = value
        else:
            result[key] = closed(value)
    if "properties" in result and "additionalProperties" not in result:
        result["additionalProperties"] = False
    return result
