"""The body of OpenAI's /v1/responses, and the chat request that it comes to.

Text, function calls and their outputs are taken. Nothing is stored: `previous_response_id` and `conversation`
are refused, and a conversation goes on by sending all its items.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from pomona.serving.chat_request import (
    MAX_TOOLS,
    AssistantMessage,
    Body,
    CallMessage,
    ChatRequest,
    FunctionCall,
    FunctionDefinition,
    Message,
    ModelId,
    Name,
    NamedFunction,
    NamedSchema,
    NamedTool,
    ObjectFormat,
    ResponseFormat,
    SchemaFormat,
    SystemMessage,
    TextFormat,
    ToolDefinition,
    ToolMessage,
    UserMessage,
)

CallId = Annotated[str, StringConstraints(min_length=1, max_length=128)]
ItemId = Annotated[str, StringConstraints(max_length=128)]
Status = Literal["in_progress", "completed", "incomplete"]


class ContentPart(Body):
    """What clients send back of our own parts (annotations, logprobs) is taken and not read."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class MessageItem(Body):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[ContentPart]
    id: ItemId | None = None
    status: Status | None = None


class CallItem(Body):
    type: Literal["function_call"]
    call_id: CallId
    name: Name
    arguments: str
    id: ItemId | None = None
    status: Status | None = None


class CallOutputItem(Body):
    type: Literal["function_call_output"]
    call_id: CallId
    output: str
    id: ItemId | None = None
    status: Status | None = None


class ResponsesFunction(FunctionDefinition):
    type: Literal["function"]


class ResponsesChoice(Body):
    type: Literal["function"]
    name: Name


class ResponsesSchema(NamedSchema):
    type: Literal["json_schema"]


class TextConfig(Body):
    format: Annotated[TextFormat | ObjectFormat | ResponsesSchema, Field(discriminator="type")] | None = None


class ResponsesRequest(Body):
    """POST /v1/responses."""

    model: ModelId
    input: (
        str | Annotated[list[CallItem | CallOutputItem | MessageItem], Field(min_length=1, max_length=4096)]
    )
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    text: TextConfig | None = None
    tools: Annotated[list[ResponsesFunction], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ResponsesChoice | None = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    truncation: Literal["disabled"] | None = None
    deadline_seconds: Annotated[float, Field(ge=0.01, le=86400)] | None = None
    store: bool | None = None  # accepted, without effect: nothing is ever stored. So are these:
    user: str | None = None
    metadata: dict[str, str] | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


def chat_of(body: ResponsesRequest) -> ChatRequest:
    """The chat request that asks the same."""
    tools = [
        ToolDefinition(type="function", function=FunctionDefinition(**tool.model_dump(exclude={"type"})))
        for tool in body.tools or ()
    ]
    choice = body.tool_choice
    if isinstance(choice, ResponsesChoice):
        choice = NamedTool(type="function", function=NamedFunction(name=choice.name))  # type: ignore[assignment]
    return ChatRequest(
        model=body.model,
        messages=_messages(body),
        temperature=body.temperature,
        top_p=body.top_p,
        max_completion_tokens=body.max_output_tokens,
        response_format=_format(body),
        tools=tools or None,
        tool_choice=choice,  # type: ignore[arg-type]
        parallel_tool_calls=body.parallel_tool_calls,
        deadline_seconds=body.deadline_seconds,
    )


def _format(body: ResponsesRequest) -> ResponseFormat | None:
    form = None if body.text is None else body.text.format
    if isinstance(form, ResponsesSchema):
        return SchemaFormat(type="json_schema", json_schema=NamedSchema(name=form.name, schema_=form.schema_))
    return form


def _messages(body: ResponsesRequest) -> list[Message]:
    messages: list[Message] = []
    if body.instructions is not None:
        messages.append(SystemMessage(role="system", content=body.instructions))
    if isinstance(body.input, str):
        return [*messages, UserMessage(role="user", content=body.input)]
    for item in body.input:
        if isinstance(item, CallItem):  # calls join the assistant's message before them
            call = CallMessage(
                id=item.call_id, function=FunctionCall(name=item.name, arguments=item.arguments)
            )
            before = messages[-1] if messages else None
            if isinstance(before, AssistantMessage):
                calls = [*(before.tool_calls or ()), call]
                messages[-1] = before.model_copy(update={"tool_calls": calls})
            else:
                messages.append(AssistantMessage(role="assistant", tool_calls=[call]))
        elif isinstance(item, CallOutputItem):
            messages.append(ToolMessage(role="tool", content=item.output, tool_call_id=item.call_id))
        else:
            text = item.content if isinstance(item.content, str) else "".join(p.text for p in item.content)
            if item.role == "user":
                messages.append(UserMessage(role="user", content=text))
            elif item.role == "assistant":
                messages.append(AssistantMessage(role="assistant", content=text))
            else:
                messages.append(SystemMessage(role=item.role, content=text))
    return messages
