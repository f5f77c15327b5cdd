"""Tool use (AFM report, section 4.2): calls of one tool, of several at once, and of none.

- *single*: the author writes a request that one tool answers, with the call's arguments.
- *parallel*: two single cases about different tools in one request, which needs both calls.
- *none*: a request that no tool serves, answered in words, against calling whenever there are tools.

The oracle tool stands among distractors, tools whose names and descriptions are most like its own, so that
choosing is hard. A case is kept if its arguments obey the tool's schema and can be read off the request:
every number and every text that is not one of a fixed choice must stand in it. The prompt is the `tools`
task's.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from pomona.adapters.tasks.registry import get
from pomona.adapters.tasks.task import Example, Request
from pomona.adapters.tasks.tools import tool_of
from pomona.data.public_sets import read
from pomona.errors import PomonaError
from pomona.models.model_directory import parse_json_object
from pomona.posttraining.options import Options
from pomona.posttraining.preference_sets import shared_words
from pomona.posttraining.synth import Author, Question, Row, cycled
from pomona.runtime.tools import Tool

ToolKind = Literal["single", "parallel", "none"]
KINDS: tuple[ToolKind, ...] = ("single", "parallel", "none")
STALE = 50
LICENSE = "Apache-2.0"
OWN_TOOLS = Path(__file__).parent / "texts" / "tools.jsonl"

INSTRUCTIONS = "You invent what people say to an assistant."
WRITE = (
    "A person asks an assistant for something that this function does:\n{function}\n\n"
    "Write what the person says, in their own words, with every value that the function needs ({hint}). "
    "Then give the arguments."
)
SMALL_TALK = (
    "Write one short thing that a person may ask an assistant about {topic}, which needs no program to "
    "answer: an opinion, an explanation or a piece of advice. Write the sentence alone."
)
ANSWER = "You are a helpful assistant. Answer in one or two sentences."
MOODS = ("in a hurry", "politely", "in one short sentence", "with a reason why", "casually")
TOPICS = (
    "cooking", "sleep", "a job interview", "history", "gardening", "friendship", "grammar", "music",
    "exercise", "philosophy", "a film", "studying", "colours", "manners", "the sea", "poetry",
)  # fmt: skip


class ToolOptions(Options):
    """distractors: similar tools beside the right ones."""

    kinds: tuple[ToolKind, ...] = KINDS
    distractors: Annotated[int, Field(ge=0, le=16)] = 3


@dataclass(frozen=True)
class Case:
    """A request with the one call that answers it."""

    request: str
    tool: Tool
    arguments: dict[str, Any]


def read_tools(path: Path) -> list[Tool]:
    """Tools of a .jsonl of {"name", "description", "parameters"}. PomonaError: a line that is none, or two of
    one name."""
    found: dict[str, Tool] = {}
    for number, line in enumerate(read(path).split("\n"), start=1):
        if not line.strip():
            continue
        row = parse_json_object(line.encode(), f"{path}, line {number}")
        try:
            tool = tool_of(row)
        except (PomonaError, KeyError, TypeError) as error:
            raise PomonaError(f"{path}, line {number}: is no tool ({error}); mend it") from error
        if tool.name in found:
            raise PomonaError(f"{path}, line {number}: a second tool {tool.name}; rename it")
        found[tool.name] = tool
    if len(found) < 2:
        raise PomonaError(f"{path}: holds fewer than two tools; give more")
    return list(found.values())


def cases(
    tools: Sequence[Tool], author: Author, options: ToolOptions, *, seed: int = 0
) -> Iterator[tuple[str, Row]]:
    """(kind, row) without end, until STALE attempts in a row gave none."""
    rng = random.Random(f"{seed}/tools")
    stale = 0
    kinds = list(options.kinds)
    for number, tool in enumerate(cycled(tools, rng)):
        kind = kinds[number % len(kinds)]
        row: Row | None = None
        if kind == "none":
            row = _no_call(tools, author, options, rng)
        else:
            count = 1 if kind == "single" else 2
            wanted = [tool, *rng.sample([t for t in tools if t.name != tool.name], count - 1)]
            found = [_case(one, kind, author, rng) for one in wanted]
            good = [case for case in found if case is not None]
            if len(good) == count:
                row = _call_row(good, tools, kind, author, options, rng)
        stale = 0 if row else stale + 1
        if row is not None:
            yield kind, row
        if stale >= STALE:
            return


def similar(tool: Tool, tools: Sequence[Tool], count: int) -> list[Tool]:
    """The other tools that are most like it, by the words of names and descriptions."""
    others = [other for other in tools if other.name != tool.name]
    return sorted(others, key=lambda other: (-shared_words(_words(tool), _words(other)), other.name))[:count]


def grounded(arguments: dict[str, Any], tool: Tool, request: str) -> bool:
    """Whether every value can be read off the request; booleans and fixed choices need not stand there."""
    properties = tool.parameters.get("properties", {})
    return all(_in(value, properties.get(name, {}), request) for name, value in arguments.items())


def _in(value: Any, schema: dict[str, Any], request: str) -> bool:
    if isinstance(value, bool) or value is None or "enum" in schema:
        return True
    if isinstance(value, int | float):
        return any(
            float(found.replace(",", "")) == value for found in re.findall(r"-?\d[\d,]*\.?\d*", request)
        )
    if isinstance(value, list):
        return all(_in(item, schema.get("items", {}), request) for item in value)
    if isinstance(value, dict):
        inner = schema.get("properties", {})
        return all(_in(item, inner.get(name, {}), request) for name, item in value.items())
    words = re.findall(r"\w+", str(value).casefold())
    said = re.findall(r"\w+", request.casefold())
    return bool(words) and f" {' '.join(words)} " in f" {' '.join(said)} "


def _words(tool: Tool) -> str:
    return f"{tool.name.replace('_', ' ')} {tool.description}"


def _case(tool: Tool, kind: str, author: Author, rng: random.Random) -> Case | None:
    function = json.dumps(tool.definition["function"], ensure_ascii=False)
    schema = {
        "type": "object",
        "properties": {"request": {"type": "string"}, "arguments": tool.parameters},
        "required": ["request", "arguments"],
    }
    text = WRITE.format(function=function, hint=rng.choice(MOODS))
    found = author.ask_one(Question(text, INSTRUCTIONS, {"schema": schema}))
    if not isinstance(found, dict) or not isinstance(found.get("request"), str):
        author.report.drop(kind, "no request was written")
        return None
    request, arguments = found["request"].strip(), found.get("arguments")
    if not isinstance(arguments, dict) or not _valid(arguments, tool):
        author.report.drop(kind, "arguments do not obey the schema")
        return None
    if not request or tool.name in request or "{" in request:
        author.report.drop(kind, "the request speaks of the function")
        return None
    if not grounded(arguments, tool, request):
        author.report.drop(kind, "a value does not stand in the request")
        return None
    return Case(request, tool, arguments)


def _valid(arguments: dict[str, Any], tool: Tool) -> bool:
    import jsonschema  # type: ignore[import-untyped]

    try:
        jsonschema.validate(arguments, {**tool.parameters, "additionalProperties": False})
    except (jsonschema.ValidationError, jsonschema.SchemaError):
        return False
    return True


def _offered(
    wanted: Sequence[Tool], tools: Sequence[Tool], count: int, rng: random.Random
) -> tuple[Tool, ...]:
    """The wanted tools among their distractors, in any order."""
    have = {tool.name: tool for tool in wanted}
    for tool in wanted:
        for other in similar(tool, tools, count):
            if len(have) < len(wanted) + count:
                have.setdefault(other.name, other)
    offered = list(have.values())
    rng.shuffle(offered)
    return tuple(offered)


def _call_row(
    good: Sequence[Case],
    tools: Sequence[Tool],
    kind: str,
    author: Author,
    options: ToolOptions,
    rng: random.Random,
) -> Row:
    joined = good[0].request
    if len(good) > 1:
        joint = rng.choice((" Also: ", " And then, ", " One more thing: "))
        joined = f"{good[0].request.rstrip()}{joint}{good[1].request}"
    offered = _offered([case.tool for case in good], tools, options.distractors, rng)
    calls = [{"name": case.tool.name, "arguments": case.arguments} for case in good]
    answer = f"<tool_call>{json.dumps(calls, ensure_ascii=False)}</tool_call>"
    source = f"pomona synth tools {kind} by {author.name}"
    return get("tools").row(Example(Request(joined, tools=offered), answer, source, LICENSE))


def _no_call(tools: Sequence[Tool], author: Author, options: ToolOptions, rng: random.Random) -> Row | None:
    request = author.ask_one(Question(SMALL_TALK.format(topic=rng.choice(TOPICS)), INSTRUCTIONS))
    if request is None or not (request := str(request).strip()):
        author.report.drop("none", "no request was written")
        return None
    answer = author.ask_one(Question(request, ANSWER))
    if answer is None or not (answer := str(answer).strip()) or "tool_call" in answer:
        author.report.drop("none", "no answer in words")
        return None
    first = rng.choice(list(tools))
    offered = _offered([first], tools, options.distractors, rng)
    source = f"pomona synth tools none by {author.name}"
    return get("tools").row(Example(Request(request, tools=offered), answer, source, LICENSE))
