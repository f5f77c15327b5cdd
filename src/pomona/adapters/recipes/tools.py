"""tools: dialogues of glaive's function-calling set in the `list` dialect of tool calls; held out: BFCL.

A dialogue gives one row for each call that answers the first thing a human said, and one for each first
answer in words where functions were there and none was called. Functions whose schema is broken are left out.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pomona.adapters.recipes.rows import RecipeOptions
from pomona.adapters.tasks.task import Example, Request
from pomona.adapters.tasks.tools import tool_name, tool_of
from pomona.data.public_sets import LICENSES, FunctionCase, ToolDialogue, bfcl, glaive
from pomona.errors import PomonaError
from pomona.runtime.tools import Tool

HELD_OUT = (("simple_python", 200), ("live_simple", 100))  # the first so many of each
DISTRACTORS = 0.5  # of the rows get functions of other dialogues beside their own


def examples(options: RecipeOptions) -> Iterator[Example]:
    if options.data is None:
        raise PomonaError("tools: its rows come from glaive_toolcall; set POMONA_DATA, or give --data")
    dialogues = [one for one in glaive(options.data) if one.functions]
    rng = options.rng("tools")
    others = [tool for one in dialogues for tool in _tools(one)]
    for _ in range(8):  # the same dialogues again, with other functions beside them
        for one in rng.sample(dialogues, len(dialogues)):
            yield from _first_answers(one, others, rng)


def held_out(folder: Path) -> list[Example]:
    found = []
    for kind, count in HELD_OUT:
        found += [_case(case) for case in bfcl(folder, kind)[:count]]
    return found


def _case(case: FunctionCase) -> Example:
    tools = tuple(tool_of(function) for function in case.functions)
    return Example(Request(case.question, tools=tools), "", "bfcl", LICENSES["bfcl"], list(case.answers))


def _tools(dialogue: ToolDialogue) -> list[Tool]:
    found = []
    for function in dialogue.functions:
        try:
            found.append(tool_of(function))
        except (PomonaError, KeyError, TypeError):
            continue
    return found


def _first_answers(dialogue: ToolDialogue, others: list[Tool], rng: random.Random) -> Iterator[Example]:
    tools = _tools(dialogue)
    turns = dialogue.turns
    if len(tools) < len(dialogue.functions) or len(turns) < 2 or turns[0][0] != "human":
        return
    who, text = turns[1]
    answer = _call(text, tools) if who == "function_call" else text if who == "gpt" else None
    if answer is None or "<tool_call>" in turns[0][1]:
        return
    if rng.random() < DISTRACTORS:
        have = {tool.name for tool in tools}
        extra = [tool for tool in rng.sample(others, min(3, len(others))) if tool.name not in have]
        tools += list({tool.name: tool for tool in extra}.values())[: rng.choice((1, 2))]
        rng.shuffle(tools)
    request = Request(turns[0][1], tools=tuple(tools))
    yield Example(request, answer, "glaive_toolcall", LICENSES["glaive_toolcall"])


def _call(text: str, tools: list[Tool]) -> str | None:
    """A call in the dialect, if it names one of the tools and only its declared arguments."""
    try:
        call: dict[str, Any] = json.loads(text)
        name, arguments = tool_name(call["name"]), call["arguments"]
        [tool] = [tool for tool in tools if tool.name == name]
        properties = tool.parameters["properties"]
        if (
            arguments.keys() - properties.keys()
            or set(tool.parameters.get("required", ())) - arguments.keys()
        ):
            return None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    ordered = {key: arguments[key] for key in properties if key in arguments}
    calls = json.dumps([{"name": name, "arguments": ordered}], ensure_ascii=False)
    return f"<tool_call>{calls}</tool_call>"
