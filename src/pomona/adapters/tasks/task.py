"""A task: the prompt that training, evaluation and the features share, the form of its answers, its metrics.

    task = get("proofread")
    messages = task.messages(Request("I has a apple."))     # what the model sees
    text = task.parse(answer)                                # what the caller gets

The content (a mail, a note) is data. It stands between <text> and </text>; those two marks inside it are
escaped, so it cannot end its own frame, and it is never read as a template. What it says is summarised or
corrected, not obeyed; the recipes train for that, the frame makes it possible.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from pomona.adapters.metrics import Metric
from pomona.adapters.tasks.shape import schema_of_shape, shape
from pomona.errors import PomonaError
from pomona.runtime.dialects import Dialect
from pomona.runtime.tools import Tool
from pomona.runtime.transcript import Entry, Instructions, Prompt, first_problem

Message = dict[str, Any]

TEMPLATE = "{request}\n\n<text>\n{content}\n</text>"
MAX_CONTENT_CHARACTERS = 1 << 20
_MARK = re.compile(r"<(?=\\*\s*/?\s*text)", re.IGNORECASE)
_ESCAPED = re.compile(r"<\\(?=\\*\s*/?\s*text)", re.IGNORECASE)
_FRAME = re.compile(r"<text>\n?(.*?)\n?</text>", re.DOTALL)
_FRAMED = re.compile(r"(.*?)\n\n<text>\n(.*)\n</text>", re.DOTALL)
_SHAPE = " as JSON with these fields: "


@dataclass(frozen=True)
class Request:
    """What is asked of a task. kind: what the content is ("e-mail"); style: how the answer should be."""

    content: str
    style: str | None = None
    kind: str | None = None
    schema: Mapping[str, Any] | None = None  # JSON schema, of `extract`
    tools: tuple[Tool, ...] = ()  # of `tools`


@dataclass(frozen=True)
class Example:
    """A request with a good answer, and where both came from.

    answer: what the model should write; empty where only `reference` is known. reference: what the metrics
    compare with, by default the parsed answer.
    """

    request: Request
    answer: str
    source: str
    license: str
    reference: Any = None


@dataclass(frozen=True)
class Task:
    """One feature of a product. `styles` and `kinds`: name -> words of the request, the first is the default.

    Of `output`, a Pydantic class: the answer is its JSON. Of `choices`: the answer is one of them. Otherwise
    it is text. tokens: how many tokens an answer to a content of so many may have.
    """

    name: str
    description: str
    instructions: str  # the system message
    request: str  # has {kind} and {style} where the task has kinds and styles
    metrics: tuple[Metric, ...]  # the first is the one to look at
    held_out: Callable[[Path], list[Example]]  # reads the folder of public data sets
    held_out_note: str  # what that is, in words
    styles: Mapping[str, str] = field(default_factory=dict)
    kinds: Mapping[str, str] = field(default_factory=dict)
    output: type[BaseModel] | None = None
    choices: tuple[str, ...] = ()
    takes_schema: bool = False
    takes_tools: bool = False
    tokens: Callable[[int], int] = lambda content: 160
    clean: Callable[[str], str] = str.strip

    @property
    def recipe(self) -> str:
        """The module that makes this task's training rows."""
        return f"pomona.adapters.recipes.{self.name}"

    @property
    def template_hash(self) -> str:
        """Changes whenever an adapter would have to be trained again because the prompt is another."""
        parts: list[Any] = [
            self.name,
            self.instructions,
            TEMPLATE,
            self.request,
            dict(self.styles),
            dict(self.kinds),
        ]
        parts.append(None if self.output is None else self.output.model_json_schema())
        return hashlib.sha256(json.dumps([*parts, self.choices], sort_keys=True).encode()).hexdigest()[:16]

    def checked(self, request: Request) -> Request:
        """The request with its defaults filled in. PomonaError for what the task does not know."""
        if not isinstance(request.content, str) or not request.content.strip():
            raise PomonaError(f"{self.name}: there is no text; give some")
        if len(request.content) > MAX_CONTENT_CHARACTERS:
            raise PomonaError(f"{self.name}: the text has more than 1,048,576 characters; give it in parts")
        if self.takes_schema != (request.schema is not None):
            wanted = "needs a JSON schema" if self.takes_schema else "takes no schema"
            raise PomonaError(f"{self.name}: {wanted}; see docs/tasks.md")
        if self.takes_tools != bool(request.tools):
            wanted = "needs tools" if self.takes_tools else "takes no tools"
            raise PomonaError(f"{self.name}: {wanted}; see docs/tasks.md")
        return Request(
            request.content,
            _known(f"{self.name}: style", request.style, self.styles),
            _known(f"{self.name}: kind", request.kind, self.kinds),
            request.schema,
            request.tools,
        )

    def entries(self, request: Request) -> tuple[Entry, ...]:
        """The conversation, for a backend: it adds the tools itself."""
        request = self.checked(request)
        if self.takes_tools:
            return (Instructions(text=self.instructions), Prompt(text=request.content))
        return (Instructions(text=self.instructions), Prompt(text=self.prompt(request)))

    def prompt(self, request: Request) -> str:
        """The user's message. Its own places are filled first; the content is put in as it is."""
        request = self.checked(request)
        if self.takes_tools:
            return request.content
        head, _, tail = TEMPLATE.partition("{content}")
        return head.replace("{request}", self.asked(request)) + escape(request.content) + tail

    def asked(self, request: Request) -> str:
        """The line above the content."""
        words = self.request.replace("{kind}", self.kinds.get(request.kind or "", ""))
        words = words.replace("{style}", self.styles.get(request.style or "", ""))
        if request.schema is not None:
            words = words + _SHAPE + escape(shape(request.schema))
        return words

    def messages(self, request: Request) -> list[Message]:
        """The conversation in the `messages` schema, tools as a model without a template for them sees it."""
        return Dialect("list").messages(self.entries(request), request.tools)[0]

    def row(self, example: Example) -> dict[str, Any]:
        """A line of training data: {"messages", "source", "license", "task"}."""
        if not example.answer:
            raise PomonaError(f"{self.name}: an example without an answer is for evaluation alone")
        messages = self.messages(example.request)
        answer = example.answer if self.output or self.takes_schema else escape(example.answer)
        return {
            "messages": [*messages, {"role": "assistant", "content": answer}],
            "source": example.source,
            "license": example.license,
            "task": self.name,
        }

    def example(self, row: Mapping[str, Any]) -> Example:
        """A line of training data, read back: for tasks whose request has no tools."""
        try:
            [user] = [m["content"] for m in row["messages"] if m["role"] == "user"]
            [answer] = [m["content"] for m in row["messages"] if m["role"] == "assistant"]
            match = _FRAMED.fullmatch(user)
            if row["task"] != self.name or self.takes_tools or match is None:
                raise ValueError
            request = self._read(match[1], unescape(match[2]))
            plain = answer if self.output or self.takes_schema else unescape(answer)
            return Example(request, plain, str(row["source"]), str(row["license"]))
        except (KeyError, TypeError, ValueError) as error:
            raise PomonaError(f"{self.name}: is no row of this task; make it again by its recipe") from error

    def _read(self, asked: str, content: str) -> Request:
        if self.takes_schema:
            form = unescape(asked.partition(_SHAPE)[2])
            return Request(content, schema=schema_of_shape(form))
        for kind in self.kinds or (None,):
            for style in self.styles or (None,):
                request = Request(content, style, kind)
                if self.asked(request) == asked:
                    return request
        raise ValueError(asked)

    def form(self, request: Request) -> dict[str, Any]:
        """The form of the answer, as options of a session's turn."""
        if self.takes_schema:
            return {"schema": dict(request.schema or {})}
        if self.choices:
            return {"choices": list(self.choices)}
        return {} if self.output is None else {"schema": self.output}

    def parse(self, answer: str) -> Any:
        """What an answer says: an instance of `output`, a JSON value, or text. PomonaError if it is
        neither.
        """
        try:
            if self.output is not None:
                return self.output.model_validate_json(answer)
            if self.takes_schema:
                return json.loads(answer)
        except ValidationError as error:
            raise PomonaError(f"{self.name}: the answer is not valid ({first_problem(error)})") from error
        except (ValueError, RecursionError) as error:
            raise PomonaError(f"{self.name}: the answer is no JSON ({error})") from error
        framed = _FRAME.fullmatch(answer.strip())  # marks of the content are escaped: this is an echo
        text = self.clean(unescape(framed[1] if framed else answer))
        if self.choices and text not in self.choices:
            raise PomonaError(f"{self.name}: the answer is none of {', '.join(self.choices)}")
        return text


def escape(content: str) -> str:
    """`content` without the frame's marks: "</text>" becomes "<\\/text>". `unescape` undoes it exactly."""
    return _MARK.sub(r"<\\", content)


def unescape(text: str) -> str:
    return _ESCAPED.sub("<", text)


def _known(what: str, given: str | None, known: Mapping[str, str]) -> str | None:
    if given is None:
        return next(iter(known), None)
    if given not in known:
        choice = f"must be one of {', '.join(known)}" if known else "the task has none; leave it out"
        raise PomonaError(f"{what} = {str(given)[:40]}: {choice}")
    return given
