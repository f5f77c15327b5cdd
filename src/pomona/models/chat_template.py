"""Chat templates: messages -> the prompt text that a chat model was trained on.

A template is a Jinja program out of a foreign file, so it runs in Jinja's immutable sandbox and sees plain
JSON data only. What it can use, and what comes out, is what transformers 5 gives it (`apply_chat_template`):
`trim_blocks`, `lstrip_blocks`, loop controls, the `generation` tag, `raise_exception`, `strftime_now`,
`tojson` without HTML escaping, the special tokens as variables. Jinja is imported at the first rendering.

The sandbox keeps a template away from Python and from files, not from the processor: one that loops will
loop."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pomona.errors import PomonaError

if TYPE_CHECKING:
    from jinja2 import Template

_JINJA_AT_LEAST = (3, 1, 6)  # earlier sandboxes could be left
_MAX_TEMPLATE_CHARACTERS = 1 << 20
_MAX_DEPTH = 64
# A message's reasoning goes by several names; templates may read the first two.
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """The chat template of a model. Rendering is pure; one object may be used from several threads.

    `template` is the Jinja source, or several by name, of which "tool_use" is used where tools are given and
    "default" otherwise. `special_tokens` (bos_token, eos_token, ...) are variables of the template. `source`
    is the file or directory for messages."""

    def __init__(
        self,
        template: str | Mapping[str, str],
        *,
        special_tokens: Mapping[str, str] | None = None,
        source: object = "",
    ) -> None:
        self._templates = {"default": template} if isinstance(template, str) else dict(template)
        self._special_tokens = dict(special_tokens or {})
        self._source = str(source) or "chat template"
        self._compiled: dict[str, Template] = {}
        if "default" not in self._templates:
            names = ", ".join(sorted(self._templates)) or "none"
            raise PomonaError(
                f"{self._source}: no default chat template (there are: {names}); name one of them default"
            )

    @property
    def text(self) -> str:
        """The Jinja source of the default template."""
        return self._templates["default"]

    def render(
        self,
        messages: Sequence[Any],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The prompt for `messages` ({"role", "content", ...} each; at least one).

        `add_generation_prompt` opens the assistant's answer; `tools` are JSON schemas; further `variables`
        reach the template (and win over the special tokens). Text in the messages is not escaped: a message
        that spells a control token holds that token. PomonaError: no messages, no JSON data, or an error out
        of the template."""
        if "continue_final_message" in variables:
            raise PomonaError(
                f"{self._source}: continue_final_message is not supported; append the text to the prompt"
            )
        chat = self._messages(messages)
        given: dict[str, Any] = {"documents": None, **self._special_tokens}
        given.update(self._plain(variables, "the template variables"))
        given["messages"] = chat
        given["tools"] = self._tools(tools)
        given["add_generation_prompt"] = add_generation_prompt
        template = self._template(
            "tool_use" if tools is not None and "tool_use" in self._templates else "default"
        )
        try:
            return template.render(given)
        except (
            Exception
        ) as error:  # a template can raise anything: Jinja errors, TypeError, ZeroDivisionError, ...
            raise self._failed(error) from error

    def _template(self, name: str) -> Template:
        if name not in self._compiled:
            text = self._templates[name]
            if len(text) > _MAX_TEMPLATE_CHARACTERS:
                raise PomonaError(
                    f"{self._source}: chat template of {len(text)} characters; get the file again"
                )
            try:
                self._compiled[name] = _compile(text, self._source)
            except PomonaError:
                raise
            except Exception as error:  # a syntax error, or a nesting that is too deep for Python's compiler
                raise self._failed(error) from error
        return self._compiled[name]

    def _failed(self, error: Exception) -> PomonaError:
        number = getattr(error, "lineno", None)  # of Jinja's syntax errors
        line = "" if number is None else f" in line {number}"
        what = str(error)[:300] or type(error).__name__
        return PomonaError(
            f"{self._source}: chat template refused the messages{line} ({what}); change the messages"
        )

    def _messages(self, messages: Sequence[Any]) -> list[dict[str, Any]]:
        if isinstance(messages, str | bytes | Mapping) or len(messages) == 0:
            raise PomonaError(
                f"{self._source}: a chat needs a list of at least one message; give role and content"
            )
        chat = []
        for message in self._plain(list(messages), "a message"):
            if not isinstance(message, dict):
                raise PomonaError(f"{self._source}: a message is no object; give role and content")
            # Some programs write "content": null or "tool_calls": null where others leave the key out.
            entry = {key: value for key, value in message.items() if value is not None}
            reasoning = next((entry[key] for key in _REASONING_KEYS if key in entry), None)
            if reasoning is not None:
                entry = {"thinking": reasoning, **entry, "reasoning_content": reasoning}
            chat.append(entry)
        return chat

    def _tools(self, tools: Sequence[Mapping[str, Any]] | None) -> list[Any] | None:
        if tools is None:
            return None
        if any(not isinstance(tool, Mapping) for tool in tools):
            raise PomonaError(
                f"{self._source}: a tool is no JSON schema object; describe it by name and parameters"
            )
        plain: list[Any] = self._plain(list(tools), "a tool")
        return plain

    def _plain(self, value: Any, what: str, depth: int = 0) -> Any:
        """A copy of `value` made of exact JSON types: nothing with methods reaches the template."""
        if value is None or type(value) in (str, int, float, bool):
            return value
        if depth > _MAX_DEPTH:
            raise PomonaError(f"{self._source}: {what} is nested deeper than {_MAX_DEPTH}; flatten it")
        if isinstance(value, str):  # this and the next two: enumerations and other subclasses
            return str.__str__(value)
        if isinstance(value, int):
            return int.__int__(value)
        if isinstance(value, float):
            return float.__float__(value)
        if isinstance(value, Mapping):
            return {
                self._plain(k, what, depth + 1): self._plain(v, what, depth + 1) for k, v in value.items()
            }
        if isinstance(value, list | tuple):
            items = [self._plain(item, what, depth + 1) for item in value]
            return items if isinstance(value, list) else tuple(items)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {
                field.name: self._plain(getattr(value, field.name), what, depth + 1)
                for field in dataclasses.fields(value)
            }
        if callable(dump := getattr(value, "model_dump", None)):  # Pydantic
            return self._plain(dump(), what, depth + 1)
        raise PomonaError(
            f"{self._source}: {what} holds a {type(value).__name__}, which is no JSON value; convert it"
        )


def _compile(text: str, source: str) -> Template:
    import jinja2
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    version = tuple(int(part) for part in jinja2.__version__.split(".")[:3] if part.isdigit())
    if version < _JINJA_AT_LEAST:
        wanted = ".".join(map(str, _JINJA_AT_LEAST))
        raise PomonaError(
            f"{source}: jinja2 {jinja2.__version__} is too old for a safe sandbox; install >= {wanted}"
        )

    class Generation(jinja2.ext.Extension):
        """`{% generation %}...{% endgeneration %}` marks the assistant's words for training; here it renders
        its body."""

        tags = {"generation"}  # noqa: RUF012  (as the base class declares it)

        def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            # A scope of its own, as in transformers: what is set inside is not seen outside.
            return [jinja2.nodes.Scope(body).set_lineno(line)]

    class Namespace(jinja2.utils.Namespace):
        """Jinja's namespace without names that start with an underscore, the way into Python's insides."""

        def __init__(*args: Any, **kwargs: Any) -> None:
            values = dict(*args[1:], **kwargs)
            for name in values:
                _check_name(name)
            jinja2.utils.Namespace.__init__(args[0], values)

        def __setitem__(self, name: str, value: Any) -> None:
            _check_name(name)
            super().__setitem__(name, value)

    def _check_name(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace cannot hold the name {name!r}")

    class Dict:
        """`dict(...)` and `dict.fromkeys(...)`, without the type's other attributes."""

        def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
            return dict(*args, **kwargs)

        def fromkeys(self, *args: Any) -> dict[Any, Any]:
            return dict.fromkeys(*args)

    def raise_exception(message: object) -> None:
        raise jinja2.exceptions.TemplateError(str(message))

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(
        raise_exception=raise_exception, strftime_now=_strftime_now, dict=Dict(), namespace=Namespace
    )
    return environment.from_string(text)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own `tojson` escapes <, > and & for HTML, which models were not trained on."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
