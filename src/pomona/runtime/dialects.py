"""How a model writes tool calls: what the prompt says about tools, what a call looks like, and reading it.

- `hermes` (Hermes, Qwen 2.5, Qwen 3), several after each other, each on lines of its own:
  `<tool_call>`, `{"name": ..., "arguments": {...}}`, `</tool_call>`
- `llama3` (Llama 3.1, 3.2), one alone: `{"name": ..., "parameters": {...}}`
- `list` (SmolLM2, and every other model): `<tool_call>[{"name": ..., "arguments": {...}}, ...]</tool_call>`

The first two are found by asking the model's chat template to render a probe. A template that shows no tools,
or shows them in another dialect, gets `list`, with the instructions in the system message: this is the form
that SmolLM2's model card describes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pomona.errors import PomonaError
from pomona.models.chat_template import ChatTemplate
from pomona.models.tokenizer import Tokenizer
from pomona.runtime.guided import Guide
from pomona.runtime.output import Output
from pomona.runtime.tools import Tool
from pomona.runtime.transcript import Entry, Instructions, Prompt, Response, ToolCall, ToolCalls, ToolOutput

Message = dict[str, Any]

MAX_CALLS = 8  # in one round
# As Python's json.dumps writes it: what the models were trained on.
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_COMPACT = {"whitespace_flexible": False}

_LIST_INSTRUCTIONS = """You can call these functions:
<tools>{tools}</tools>

To call functions, answer with nothing but this, and mind the types of the arguments:
<tool_call>[{{"name": "function", "arguments": {{"argument": "value"}}}}]</tool_call>
Their results come in <tool_response>. If no function helps, answer in words."""

_PROBE = "probe_of_tools"
_PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": _PROBE,
        "description": "None.",
        "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]},
    },
}


@dataclass(frozen=True)
class Dialect:
    """One row of the table above."""

    name: Literal["hermes", "llama3", "list"]
    special_trigger: bool = False  # <tool_call> is a control token of the model, not text

    @property
    def arguments_key(self) -> str:
        return "parameters" if self.name == "llama3" else "arguments"

    def messages(
        self, entries: Sequence[Entry], tools: Sequence[Tool]
    ) -> tuple[list[Message], list[Any] | None]:
        """The conversation for the chat template, and the tools for it (None: they are in the messages)."""
        if self.name != "list":
            return chat_messages(entries), [tool.definition for tool in tools] or None
        messages: list[Message] = []
        for entry in entries:
            if isinstance(entry, ToolCalls):
                calls = [{"name": call.name, "arguments": call.arguments} for call in entry.calls]
                text = f"<tool_call>{json.dumps(calls, ensure_ascii=False)}</tool_call>"
                messages.append(_message("assistant", entry.text + text))
            elif isinstance(entry, ToolOutput):
                text = f"<tool_response>\n{entry.text}\n</tool_response>"
                if messages[-1].get("outputs"):  # the outputs of one round make one message
                    messages[-1]["content"] += f"\n{text}"
                else:
                    messages.append({**_message("user", text), "outputs": True})
            else:
                messages += chat_messages([entry])
        for message in messages:
            message.pop("outputs", None)
        if tools:
            definitions = json.dumps([tool.definition["function"] for tool in tools], ensure_ascii=False)
            text = _LIST_INSTRUCTIONS.format(tools=definitions)
            if messages[0]["role"] == "system":
                messages[0]["content"] += f"\n\n{text}"
            else:
                messages.insert(0, _message("system", text))
        return messages, None

    def guide(
        self, tools: Sequence[Tool], tool_choice: str, output: Output, *, max_calls: int = MAX_CALLS
    ) -> Guide | None:
        """What the answer must be: of the output's form, or calls that obey the tools' schemas (at most
        `max_calls` of them), or either."""
        if not tools:
            return output.guide
        if tool_choice == "none":
            return output.guide or (None if self.name == "llama3" else Guide.lark(f"start: WORDS\n{_WORDS}"))
        if tool_choice == "auto":
            answer, chosen = f"{_answer(output, self.name)} | calls", list(tools)
        else:
            answer = "calls"
            chosen = [tool for tool in tools if tool_choice in ("required", tool.name)]
        schemas = [self._call_schema(tool) for tool in chosen]
        one = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
        lead = tool_choice == "auto" and output.kind == "text"  # words may come before the calls
        words = f"\n{_WORDS}" if lead and self.name != "llama3" else ""
        return Guide.lark(f"start: {answer}\n{self._calls(one, lead, max_calls)}{words}")

    def _call_schema(self, tool: Tool) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": {"name": {"const": tool.name}, self.arguments_key: tool.parameters},
            "required": ["name", self.arguments_key],
            "additionalProperties": False,
        }

    def _calls(self, one: dict[str, Any], lead: bool, max_calls: int) -> str:
        """lead: words, by the rule WORDS, may come before the first call."""
        one = _hoisted(one)
        if self.name == "llama3":
            return f"calls: {_json(one, _SPACING)}"
        trigger, end = ("<tool_call>", "</tool_call>") if self.special_trigger else _QUOTED
        begin, rules = trigger, []
        if lead and self.special_trigger:
            begin = f"WORDS {trigger}"
        elif lead:
            begin, rules = "lead", [f"lead[lazy]: WORDS {trigger}"]
        if self.name == "list":
            definitions = one.pop("$defs", None)
            several: dict[str, Any] = {"type": "array", "items": one, "minItems": 1, "maxItems": max_calls}
            if definitions:
                several["$defs"] = definitions
            return "\n".join([f"calls: {begin} {_json(several, _SPACING)} {end}", *rules])
        rules.append(f'body: "\\n" {_json(one, _SPACING)} "\\n" {end}')
        more = f' ("\\n" {trigger} body){{0,{max_calls - 1}}}' if max_calls > 1 else ""
        return "\n".join([f"calls: {begin} body{more}", *rules])

    def splitter(self, tools: Sequence[Tool], tool_choice: str) -> Splitter:
        """Reads one answer as it comes."""
        if not tools or tool_choice == "none":
            return Splitter("", False)
        return Splitter("{", True) if self.name == "llama3" else Splitter("<tool_call>", False)

    def read(self, text: str, tools: Sequence[Tool], calls_before: int) -> tuple[ToolCall, ...] | None:
        """The calls in what a Splitter held back; None when it is no complete calls."""
        found: list[Any] = []
        try:
            if self.name == "llama3":
                found = [json.loads(text)]
            else:
                for body in re.findall(r"<tool_call>(.*?)</tool_call>", text, flags=re.DOTALL):
                    value = json.loads(body)
                    found += value if isinstance(value, list) else [value]
        except (ValueError, RecursionError):
            return None
        names = {tool.name for tool in tools}
        calls = []
        for number, call in enumerate(found, calls_before + 1):
            if not isinstance(call, dict) or set(call) != {"name", self.arguments_key}:
                return None
            arguments = call[self.arguments_key]
            if call["name"] not in names or not isinstance(arguments, dict):
                return None
            # Nine letters and digits: the only form of an id that every template takes.
            calls.append(ToolCall(id=f"call{number:05d}", name=call["name"], arguments=arguments))
        return tuple(calls) or None


class Splitter:
    """Lets the words of an answer through and holds back its calls, from `trigger` on."""

    def __init__(self, trigger: str, only_first: bool) -> None:
        """only_first: the trigger counts as the first character of the answer alone."""
        self._trigger, self._only_first = trigger, only_first
        self._waiting = ""  # perhaps the beginning of a trigger
        self.held = ""
        self.text = ""

    def push(self, piece: str) -> str:
        """What of the answer so far is certainly words, and new."""
        if self.held or not self._trigger:
            return self._held(piece) if self.held else self._said(piece)
        if self._only_first:
            return (
                self._held(piece) if not self.text and piece.startswith(self._trigger) else self._said(piece)
            )
        text = self._waiting + piece
        place = text.find(self._trigger)
        if place >= 0:
            self._waiting, self.held = "", text[place:]
            return self._said(text[:place])
        keep = next(
            (
                n
                for n in range(min(len(self._trigger) - 1, len(text)), 0, -1)
                if self._trigger.startswith(text[-n:])
            ),
            0,
        )
        self._waiting = text[len(text) - keep :]
        return self._said(text[: len(text) - keep])

    def finish(self) -> str:
        """The words that were held back in case a trigger came."""
        waiting, self._waiting = self._waiting, ""
        return self._said(waiting)

    def release(self) -> str:
        """Says that what was held is no call after all."""
        held, self.held = self.held, ""
        return self._said(held)

    def _said(self, text: str) -> str:
        self.text += text
        return text

    def _held(self, text: str) -> str:
        self.held += text
        return ""


def find_dialect(tokenizer: Tokenizer) -> Dialect:
    """The dialect of the model whose tokenizer this is."""
    template = tokenizer.chat_template
    rendered = _probe(template) if template is not None else ""
    flat = "".join(rendered.split())
    if '{"name":"' + _PROBE + '","arguments":{"x":12345}}' in flat and "<tool_call>" in flat:
        return Dialect("hermes", _is_special(tokenizer, "<tool_call>"))
    if '{"name":"' + _PROBE + '","parameters":{"x":12345}}' in flat and "<tool_call>" not in flat:
        return Dialect("llama3")
    return Dialect("list")


def _probe(template: ChatTemplate) -> str:
    """A call and its output as the template writes them; empty if it does not show tool, call and output."""
    call = ToolCall(id="call00001", name=_PROBE, arguments={"x": 12345})
    entries: list[Entry] = [
        Prompt(text="question"),
        ToolCalls(calls=(call,)),
        ToolOutput(id=call.id, name=_PROBE, text="67890"),
    ]
    try:
        with_tools = template.render(
            chat_messages(entries[:1]), add_generation_prompt=True, tools=[_PROBE_TOOL]
        )
        whole = template.render(chat_messages(entries), add_generation_prompt=True, tools=[_PROBE_TOOL])
    except PomonaError:
        return ""
    shown = _PROBE in with_tools and "67890" in whole
    return whole if shown else ""


def _is_special(tokenizer: Tokenizer, token: str) -> bool:
    added = tokenizer.backend.get_added_tokens_decoder().values()
    return any(one.content == token and one.special for one in added)


def chat_messages(entries: Sequence[Entry]) -> list[Message]:
    """The entries as messages of the `messages` schema; arguments are objects, as templates take them."""
    messages = []
    for entry in entries:
        if isinstance(entry, Instructions):
            messages.append(_message("system", entry.text))
        elif isinstance(entry, Prompt):
            messages.append(_message("user", entry.text))
        elif isinstance(entry, Response):
            messages.append(_message("assistant", entry.text))
        elif isinstance(entry, ToolOutput):
            messages.append({**_message("tool", entry.text), "tool_call_id": entry.id, "name": entry.name})
        else:
            calls = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in entry.calls
            ]
            messages.append({**_message("assistant", entry.text), "tool_calls": calls})
    return messages


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


_QUOTED = ('"<tool_call>"', '"</tool_call>"')
# Small models like to play the tool's part, or to write what only looks like a call. So <tool_ begins a call.
_WORDS = "WORDS: /(?s:.*)/ & ~/(?s:.*)<tool_(?s:.*)/"


def _answer(output: Output, dialect: str) -> str:
    """The grammar of the answer where calls are possible too."""
    if output.kind == "text":
        return "/([^{](.|\\n)*)?/" if dialect == "llama3" else "WORDS"
    if output.kind == "schema":
        assert output.schema is not None
        return _json(output.schema, _COMPACT)
    assert output.guide is not None
    if output.kind == "grammar":
        raise PomonaError('grammar: cannot stand beside tools; use tool_choice="none", or another form')
    # In Lark, / ends a pattern.
    pattern = re.sub(r"\\.|/", lambda m: "\\/" if m[0] == "/" else m[0], output.guide.text, flags=re.DOTALL)
    return "/" + pattern.replace("\n", "\\n") + "/"


def _json(schema: dict[str, Any], spacing: dict[str, Any]) -> str:
    return f"%json {json.dumps({**schema, 'x-guidance': spacing})}"


def _hoisted(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a call, or of one of several, with the tools' definitions at its root, for references.

    Two tools may have different definitions of one name, so each gets its number."""
    definitions: dict[str, Any] = {}
    calls = schema.get("anyOf", [schema])
    moved = []
    for number, call in enumerate(calls):
        text = json.dumps(call)
        text = text.replace('"#/$defs/', f'"#/$defs/{number}.')
        copy = json.loads(text)
        for key in ("arguments", "parameters"):
            parameters = copy["properties"].get(key)
            if isinstance(parameters, dict):
                for name, definition in parameters.pop("$defs", {}).items():
                    definitions[f"{number}.{name}"] = definition
        moved.append(copy)
    result = {"anyOf": moved} if "anyOf" in schema else moved[0]
    if definitions:
        result["$defs"] = definitions
    return result
