"""Tools: Python functions that a model may call, and their descriptions as JSON schemas.

    def get_weather(city: str, unit: Literal["C", "F"] = "C") -> str:
        '''Current weather.

        Args:
            city: Name of the city, in English.
        '''

    session = model.session(tools=[get_weather])

The schema comes from the type hints, the descriptions from the docstring (its first paragraph, and Google's
`Args:` section) or from `Annotated[str, Field(description=...)]`. Arguments are validated before the call.
"""

from __future__ import annotations

import inspect
import re
import typing
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic_core import PydanticSerializationError, to_json

from pomona.errors import PomonaError, one_line
from pomona.runtime.output import UNFIT, closed
from pomona.runtime.transcript import first_problem

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_POSITIONAL = inspect.Parameter.POSITIONAL_OR_KEYWORD
_PREFIX = "argument_"  # a field of a Pydantic class may not be called `json` or `_x`; an alias may


@dataclass(frozen=True)
class Tool:
    """Something that a model may call. `Tool.of(function)` makes one; give the parts for anything else."""

    name: str
    description: str
    parameters: dict[str, Any]  # JSON schema of an object
    function: Callable[..., Any]  # called with the arguments by name; may be `async def`
    validate: Callable[[dict[str, Any]], dict[str, Any]] | None = None  # JSON values -> arguments

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not NAME.fullmatch(self.name):
            raise PomonaError(
                f"tool {self.name!r}: a name has letters, digits, _ and -, at most 64; rename the tool"
            )
        if not isinstance(self.description, str) or not self.description.strip():
            raise PomonaError(f"tool {self.name}: has no description; say what it does in the docstring")
        if not isinstance(self.parameters, dict) or self.parameters.get("type") != "object":
            raise PomonaError(f"tool {self.name}: parameters must be a JSON schema of type object")
        if not callable(self.function):
            raise PomonaError(f"tool {self.name}: function cannot be called; give a function")

    @classmethod
    def of(
        cls, function: Callable[..., Any], *, name: str | None = None, description: str | None = None
    ) -> Tool:
        """The tool of a function. PomonaError when a type hint or the docstring is missing."""
        name = str(name or getattr(function, "__name__", type(function).__name__))
        if name == "<lambda>":
            raise PomonaError("tool: a lambda has no name and no docstring; use def")
        text, notes = _docstring(inspect.getdoc(function) or "")
        model = _arguments(function, name, notes)
        with warnings.catch_warnings():  # of defaults that are no JSON: they are left out of the schema
            warnings.simplefilter("ignore")
            try:
                schema = closed(model.model_json_schema())
            except UNFIT as error:
                raise _no_schema(name, error) from error
        schema.pop("title", None)
        schema.pop("description", None)
        for field in schema.setdefault("properties", {}).values():
            field.pop("title", None)

        def validate(values: dict[str, Any]) -> dict[str, Any]:
            checked = model.model_validate(values)
            # A parameter that was not given keeps the function's own default.
            return {key.removeprefix(_PREFIX): getattr(checked, key) for key in checked.model_fields_set}

        return cls(name, description or text, schema, function, validate)

    @property
    def asynchronous(self) -> bool:
        called = getattr(type(self.function), "__call__", None)  # noqa: B004  (of an object with __call__)
        return inspect.iscoroutinefunction(self.function) or inspect.iscoroutinefunction(called)

    @property
    def definition(self) -> dict[str, Any]:
        """As chat templates and OpenAI's protocol take it."""
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": self.parameters,
            },
        }

    def arguments(self, values: dict[str, JsonValue]) -> dict[str, Any]:
        """JSON values as the function takes them. ValueError, with the first problem, if they do not fit."""
        if self.validate is None:
            return dict(values)
        try:
            return self.validate(values)
        except ValidationError as error:
            raise ValueError(first_problem(error)) from error


def output_text(value: object) -> str:
    """What a tool returned, as the model reads it: a text as it is, anything else as JSON."""
    if isinstance(value, str):
        return value
    try:
        return to_json(value).decode()
    except (PydanticSerializationError, ValueError) as error:
        raise TypeError(
            f"returned a {type(value).__name__}, which is no text and no JSON ({one_line(str(error))})"
        ) from error


def as_tools(given: Sequence[Callable[..., Any] | Tool]) -> tuple[Tool, ...]:
    """Functions and Tool objects as tools with different names."""
    if callable(given) or isinstance(given, str | bytes) or not isinstance(given, Sequence):
        raise PomonaError("tools: must be a list of functions or Tool objects")
    tools: list[Tool] = []
    for one in given:
        if not isinstance(one, Tool) and not callable(one):
            raise PomonaError(f"tools: {one!r} is neither a function nor a Tool")
        tool = one if isinstance(one, Tool) else Tool.of(one)
        if any(tool.name == other.name for other in tools):
            raise PomonaError(f"tools: two are called {tool.name}; rename one: Tool.of(function, name=...)")
        tools.append(tool)
    return tuple(tools)


def _arguments(function: Callable[..., Any], name: str, notes: dict[str, str]) -> type[BaseModel]:
    """A Pydantic class with one field per parameter, the parameter's name as its alias."""
    try:
        signature = inspect.signature(function)
        hinted = function if inspect.isroutine(function) else type(function).__call__
        hints = typing.get_type_hints(hinted, include_extras=True)
    except (ValueError, TypeError, NameError) as error:
        raise PomonaError(
            f"tool {name}: its signature cannot be read ({error}); use plain type hints"
        ) from error
    unknown = ", ".join(notes.keys() - signature.parameters.keys())
    if unknown:
        raise PomonaError(f"tool {name}: the docstring describes {unknown}, which is no parameter; mend it")
    fields: dict[str, Any] = {}
    for parameter in signature.parameters.values():
        if parameter.kind not in (_POSITIONAL, inspect.Parameter.KEYWORD_ONLY):
            raise PomonaError(
                f"tool {name}: parameter {parameter.name} cannot be given by name; use plain parameters"
            )
        if parameter.name not in hints:
            raise PomonaError(
                f"tool {name}: parameter {parameter.name} has no type hint; write {parameter.name}: str"
            )
        extra: dict[str, Any] = {"alias": parameter.name}
        if not _described(hints[parameter.name]) and parameter.name in notes:
            extra["description"] = notes[parameter.name]
        default = ... if parameter.default is inspect.Parameter.empty else parameter.default
        fields[_PREFIX + parameter.name] = (hints[parameter.name], Field(default, **extra))
    try:
        return create_model(name, __config__=ConfigDict(extra="forbid"), **fields)
    except UNFIT as error:
        raise _no_schema(name, error) from error


def _described(hint: Any) -> bool:
    return any(isinstance(note, FieldInfo) and note.description for note in getattr(hint, "__metadata__", ()))


def _no_schema(name: str, error: Exception) -> PomonaError:
    return PomonaError(
        f"tool {name}: a type hint has no JSON schema ({str(error).splitlines()[0]}); use types that "
        "Pydantic understands"
    )


def _docstring(text: str) -> tuple[str, dict[str, str]]:
    """The first paragraph in one line, and what the `Args:` section says of each parameter."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.strip() in ("Args:", "Arguments:")), len(lines))
    head = "\n".join(lines[:start]).strip().split("\n\n")[0]
    notes: dict[str, str] = {}
    section = lines[start + 1 :]
    base = next((_indent(line) for line in section if line.strip()), 0)
    current = ""
    for line in section:
        if not line.strip():
            continue
        if base == 0 or _indent(line) < base:  # the next section
            break
        match = re.match(r"\s*\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s*(.*)", line)
        if _indent(line) == base and match:
            current = match[1]
            notes[current] = match[2].strip()
        elif current:
            notes[current] = f"{notes[current]} {line.strip()}".strip()
    return " ".join(head.split()), notes


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
