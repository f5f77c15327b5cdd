"""Tools from functions: their schemas, their arguments, and what is refused."""

from __future__ import annotations

import functools
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema
import pytest
from pydantic import BaseModel, Field

from pomona.errors import PomonaError
from pomona.runtime.tools import Tool, as_tools, output_text


class Kind(Enum):
    CAT = "cat"
    DOG = "dog"


class Place(BaseModel):
    lat: float = Field(ge=-90, le=90)
    lon: float = Field(ge=-180, le=180)


def forecast(
    city: str,
    days: Annotated[int, Field(ge=1, le=7, description="How far ahead.")],
    unit: Literal["C", "F"] = "C",
    place: Place | None = None,
    *,
    kinds: list[Kind] = [],  # noqa: B006
) -> str:
    """Weather of
    the next days.

    More about it that the model is not told.

    Args:
        city: Name of the city,
            in English.
        days (int): Not used: the annotation wins.
        unit: Celsius or Fahrenheit.

    Returns:
        text: a text.
    """
    return f"{city} {days} {unit} {place} {kinds}"


def test_a_function_gives_a_schema() -> None:
    tool = Tool.of(forecast)
    assert (tool.name, tool.description) == ("forecast", "Weather of the next days.")
    properties = tool.parameters["properties"]
    assert list(properties) == ["city", "days", "unit", "place", "kinds"]
    assert properties["city"] == {"type": "string", "description": "Name of the city, in English."}
    assert properties["days"] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 7,
        "description": "How far ahead.",
    }
    assert properties["unit"] == {
        "enum": ["C", "F"],
        "type": "string",
        "default": "C",
        "description": "Celsius or Fahrenheit.",
    }
    assert tool.parameters["required"] == ["city", "days"]
    assert tool.parameters["additionalProperties"] is False
    assert tool.parameters["$defs"]["Place"]["additionalProperties"] is False
    jsonschema.Draft202012Validator.check_schema(tool.parameters)
    assert tool.definition["function"]["parameters"] is tool.parameters


def test_arguments_arrive_as_their_types() -> None:
    tool = Tool.of(forecast)
    arguments = tool.arguments({"city": "Oslo", "days": 3, "place": {"lat": 1, "lon": 2.5}, "kinds": ["cat"]})
    assert arguments == {
        "city": "Oslo",
        "days": 3,
        "place": Place(lat=1, lon=2.5),
        "kinds": [Kind.CAT],
    }
    assert tool.function(**arguments) == "Oslo 3 C lat=1.0 lon=2.5 [<Kind.CAT: 'cat'>]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"city": "Oslo"}, "days: Field required"),
        ({"city": "Oslo", "days": 9}, "days: Input should be less than or equal to 7"),
        ({"city": "Oslo", "days": 1, "unit": "K"}, "unit: Input should be 'C' or 'F'"),
        ({"city": "Oslo", "days": 1, "when": "now"}, "when: Extra inputs are not permitted"),
        ({"city": None, "days": 1}, "city: Input should be a valid string"),
    ],
)
def test_arguments_that_do_not_fit(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tool.of(forecast).arguments(arguments)


def test_awkward_names_and_empty_signatures() -> None:
    def odd(json: str, schema: int, _x: int = 1, model_config: str = "") -> str:
        """Takes names that Pydantic has for itself."""
        return f"{json} {schema} {_x} {model_config}"

    def now() -> str:
        """Time of day."""
        return "noon"

    tool = Tool.of(odd)
    assert list(tool.parameters["properties"]) == ["json", "schema", "_x", "model_config"]
    assert tool.function(**tool.arguments({"json": "a", "schema": 2, "_x": 3})) == "a 2 3 "
    assert Tool.of(now).parameters == {"type": "object", "properties": {}, "additionalProperties": False}
    assert Tool.of(now).arguments({}) == {}


def test_methods_and_objects_are_functions_too() -> None:
    class Counter:
        def __init__(self) -> None:
            self.count = 0

        def up(self, by: int) -> int:
            """Counts up."""
            self.count += by
            return self.count

    class Caller:
        """Calls somebody."""

        async def __call__(self, name: str) -> str:
            return name

    counter = Counter()
    tool = Tool.of(counter.up)
    assert list(tool.parameters["properties"]) == ["by"]
    tool.function(**tool.arguments({"by": 2}))
    assert counter.count == 2
    assert not tool.asynchronous
    called = Tool.of(Caller(), name="call")
    assert list(called.parameters["properties"]) == ["name"]
    assert called.asynchronous

    @functools.wraps(forecast)
    def wrapped(*args: Any, **options: Any) -> str:
        return forecast(*args, **options)

    assert Tool.of(wrapped).parameters == Tool.of(forecast).parameters


def test_a_tool_of_parts() -> None:
    parameters = {"type": "object", "properties": {"q": {"type": "string"}}}
    tool = Tool("find", "Finds.", parameters, lambda q: q.upper())
    assert tool.function(**tool.arguments({"q": "x"})) == "X"
    assert as_tools([tool, forecast])[1].name == "forecast"
    assert (
        Tool.of(forecast, name="weather", description="Says it.").definition["function"]["name"] == "weather"
    )


def bare(city: str) -> str:
    return city


def untyped(city, days: int) -> str:  # type: ignore[no-untyped-def]
    """Has a hole."""
    return ""


def rest(*cities: str) -> str:
    """Takes any number."""
    return ""


def options(**cities: str) -> str:
    """Takes any names."""
    return ""


def positional(city: str, /) -> str:
    """Takes no names."""
    return ""


def strange(path: Path, opener: type[open]) -> str:  # type: ignore[valid-type]
    """Takes what is no JSON."""
    return ""


def unresolved(city: Nowhere) -> str:  # type: ignore[name-defined]  # noqa: F821
    """Has a hint that means nothing."""
    return ""


def stale(city: str) -> str:
    """Describes another.

    Args:
        town: It was called that before.
    """
    return ""


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (bare, "tool bare: has no description; say what it does in the docstring"),
        (untyped, "parameter city has no type hint; write city: str"),
        (rest, "parameter cities cannot be given by name"),
        (options, "parameter cities cannot be given by name"),
        (positional, "parameter city cannot be given by name"),
        (strange, "tool strange: "),
        (unresolved, "its signature cannot be read .*Nowhere"),
        (stale, "the docstring describes town, which is no parameter"),
        (lambda x: x, "a lambda has no name"),
    ],
)
def test_a_function_that_makes_no_tool(function: Any, message: str) -> None:
    with pytest.raises(PomonaError, match=message) as caught:
        Tool.of(function)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (("a b", "Text.", {"type": "object"}, print), "a name has letters, digits"),
        (("", "Text.", {"type": "object"}, print), "a name has letters, digits"),
        (("a", " ", {"type": "object"}, print), "has no description"),
        (("a", "Text.", {"type": "array"}, print), "must be a JSON schema of type object"),
        (("a", "Text.", {"type": "object"}, "print"), "cannot be called"),
    ],
)
def test_parts_that_make_no_tool(parts: Any, message: str) -> None:
    with pytest.raises(PomonaError, match=message):
        Tool(*parts)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as it is", "as it is"),
        ({"a": [1, None]}, '{"a":[1,null]}'),
        (Place(lat=1, lon=2), '{"lat":1.0,"lon":2.0}'),
        (None, "null"),
        ([Kind.CAT], '["cat"]'),
        (3.5, "3.5"),
        ("Zürich", "Zürich"),
        (["Zürich"], '["Zürich"]'),
    ],
)
def test_outputs_become_text(value: Any, text: str) -> None:
    assert output_text(value) == text


def test_what_is_no_text_and_no_json_is_refused() -> None:
    with pytest.raises(TypeError, match="returned a object, which is no text and no JSON"):
        output_text(object())
