"""OpenAI's messages, tools and response formats as the runtime's entries, Tool objects and Outputs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pomona.errors import PomonaError
from pomona.runtime.output import TEXT, Output, wanted
from pomona.runtime.tools import Tool
from pomona.runtime.transcript import (
    Entry,
    Instructions,
    Prompt,
    Response,
    ToolCall,
    ToolCalls,
    ToolOutput,
)
from pomona.serving.chat_request import (
    AssistantMessage,
    ChatRequest,
    FunctionDefinition,
    Message,
    NamedTool,
    ObjectFormat,
    ResponseFormat,
    SchemaFormat,
    Text,
    ToolMessage,
    UserMessage,
)
from pomona.serving.errors import ApiError, refused
from pomona.serving.settings import ServerSettings


def entries_of(messages: Sequence[Message]) -> tuple[Entry, ...]:
    """ApiError where tool messages do not answer the calls before them, one each."""
    entries: list[Entry] = []
    waiting: dict[str, ToolCall] = {}
    for number, message in enumerate(messages):
        place = f"messages[{number}]"
        if isinstance(message, ToolMessage):
            call = waiting.pop(message.tool_call_id, None)
            if call is None:
                raise ApiError(
                    400,
                    f"Invalid '{place}': a message of role 'tool' must answer a tool call of the assistant "
                    "message before it, by its tool_call_id.",
                    param=f"{place}.tool_call_id",
                )
            entries.append(ToolOutput(id=call.id, name=call.name, text=text_of(message.content)))
            continue
        _none_waiting(waiting, place)
        if isinstance(message, AssistantMessage):
            said = text_of(message.content) if message.content is not None else message.refusal or ""
            if message.tool_calls is None:
                entries.append(Response(text=said))
                continue
            calls = tuple(
                _call(call.id, call.function, f"{place}.tool_calls[{at}]")
                for at, call in enumerate(message.tool_calls)
            )
            waiting = {call.id: call for call in calls}
            if len(waiting) < len(calls):
                raise ApiError(
                    400, f"Invalid '{place}': two tool calls have one id.", param=f"{place}.tool_calls"
                )
            entries.append(ToolCalls(text=said, calls=calls))
        elif isinstance(message, UserMessage):
            entries.append(Prompt(text=text_of(message.content)))
        else:
            entries.append(Instructions(text=text_of(message.content)))
    _none_waiting(waiting, f"messages[{len(messages) - 1}]")
    return tuple(entries)


def said_in(entries: Sequence[Entry]) -> tuple[str, ...]:
    """The words that come from outside, turn by turn: the user's, and what tools brought."""
    return tuple(entry.text for entry in entries if isinstance(entry, Prompt | ToolOutput))


def calls_in(entries: Sequence[Entry]) -> int:
    """How many calls were made so far: ids go on from there."""
    return sum(len(entry.calls) for entry in entries if isinstance(entry, ToolCalls))


def text_of(content: Text) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _none_waiting(waiting: dict[str, ToolCall], place: str) -> None:
    if waiting:
        ids = ", ".join(waiting)
        raise ApiError(
            400, f"Invalid '{place}': no tool message answers the tool calls {ids}.", param="messages"
        )


def _call(identity: str, function: Any, place: str) -> ToolCall:
    try:
        arguments = json.loads(function.arguments or "{}")
        if not isinstance(arguments, dict):
            raise ValueError("no object")
        return ToolCall(id=identity, name=function.name, arguments=arguments)
    except (ValueError, RecursionError) as error:
        raise ApiError(
            400,
            f"Invalid '{place}.function.arguments': must be the text of a JSON object.",
            param=f"{place}.function.arguments",
        ) from error


def tools_of(request: ChatRequest, settings: ServerSettings) -> tuple[tuple[Tool, ...], str]:
    """The tools, and the choice among them: "none", "auto", "required" or a tool's name."""
    choice = request.tool_choice
    if not request.tools:
        if choice is not None and choice != "none":
            raise ApiError(400, "'tool_choice' needs 'tools'.", param="tool_choice")
        return (), "none"
    tools = tuple(
        tool_of(tool.function, f"tools[{number}].function", settings)
        for number, tool in enumerate(request.tools)
    )
    if sum(len(json.dumps(tool.parameters)) for tool in tools) > settings.max_schema_bytes:
        raise ApiError(
            400, f"'tools': more than {settings.max_schema_bytes:,} bytes of schemas.", param="tools"
        )
    names = {tool.name for tool in tools}
    if len(names) < len(tools):
        raise ApiError(400, "'tools': two functions have one name.", param="tools")
    if isinstance(choice, NamedTool):
        if choice.function.name not in names:
            raise ApiError(
                400, f"'tool_choice': there is no tool '{choice.function.name}'.", param="tool_choice"
            )
        return tools, choice.function.name
    return tools, choice or "auto"


def tool_of(function: FunctionDefinition, place: str, settings: ServerSettings) -> Tool:
    parameters = function.parameters or {"type": "object", "properties": {}, "additionalProperties": False}
    check_schema(parameters, f"{place}.parameters", settings)
    if function.name in ("none", "auto", "required"):
        raise ApiError(
            400, f"'{place}.name': '{function.name}' is a choice, not a name.", param=f"{place}.name"
        )
    try:
        return Tool(function.name, function.description or function.name, parameters, _client_calls)
    except PomonaError as error:
        raise refused(error, param=f"{place}.parameters") from error


def _client_calls(**_: object) -> None:
    raise AssertionError("tools are the client's to call")


def output_of(response_format: ResponseFormat | None, settings: ServerSettings) -> Output:
    if isinstance(response_format, SchemaFormat):
        return output_of_schema(
            response_format.json_schema.schema_, "response_format.json_schema.schema", settings
        )
    if isinstance(response_format, ObjectFormat):
        return wanted(schema={"type": "object"})
    return TEXT


def output_of_schema(schema: dict[str, Any], place: str, settings: ServerSettings) -> Output:
    check_schema(schema, place, settings)
    try:
        return wanted(schema=schema)
    except PomonaError as error:
        raise refused(error, param=place) from error


def check_schema(schema: dict[str, Any], place: str, settings: ServerSettings) -> None:
    """Bounds of size and depth: a schema comes from anybody, and compiling one takes time."""
    level: list[Any] = [schema]
    depth = 0
    while level:
        depth += 1
        if depth > settings.max_schema_depth:
            raise ApiError(
                400,
                f"'{place}' is nested more than {settings.max_schema_depth} levels deep.",
                param=place,
                code="schema_too_deep",
            )
        children: list[Any] = []
        for value in level:
            children += value.values() if isinstance(value, dict) else value
        level = [child for child in children if isinstance(child, dict | list)]
    if (size := len(json.dumps(schema))) > settings.max_schema_bytes:
        raise ApiError(
            400,
            f"'{place}' has {size:,} bytes; at most {settings.max_schema_bytes:,} are taken.",
            param=place,
            code="schema_too_large",
        )
