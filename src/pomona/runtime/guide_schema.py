"""JSON schemas as llguidance obeys them: everything in a schema is enforced or refused, nothing is skipped.

llguidance refuses many keywords that it does not know how to obey, but not all: it skips misspelt keywords,
the `format` of numbers and keywords of another draft, rounds large numbers, counts a repeated key twice, and
lets `x-guidance` switch its checks off. `prepare` refuses what would be obeyed by half, and rewrites the rest
into a schema whose every answer satisfies the given one:

- formats and patterns become patterns that every reader understands alike (guide_pattern.py);
- exclusive bounds of numbers become the next number of nine decimals: 0.99999999999999999999 is less than 1
  but read as 1, and llguidance does not exclude every exclusive bound;
- `oneOf` sees through references, as far as its options are references themselves;
- `closed`: objects that list `properties` get no others unless `additionalProperties` says so, and integers
  without bounds stay within +-(2^53 - 1), the range that every JSON reader keeps. Small models never come to
  an end otherwise.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any

from pomona.errors import PomonaError
from pomona.runtime.guide_pattern import FORMATS, translate

Schema = dict[str, Any]

MAX_DEPTH = 60
MAX_SCHEMAS = 20_000
SAFE_INTEGER = (1 << 53) - 1
DECIMALS = 9  # an exclusive bound is kept by this much

_DRAFTS = {
    "http://json-schema.org/draft-04/schema": 4,
    "http://json-schema.org/draft-06/schema": 6,
    "http://json-schema.org/draft-07/schema": 7,
    "https://json-schema.org/draft/2019-09/schema": 2019,
    "https://json-schema.org/draft/2020-12/schema": 2020,
}
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("prefixItems", "anyOf", "oneOf", "allOf")
_SINGLE = ("additionalProperties", "items", "additionalItems")
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_VALUES = ("type", "enum", "const", "required", "pattern", "format", "$ref")
_ANNOTATIONS = frozenset(
    (
        *("title", "description", "default", "examples", "example", "deprecated", "$comment"),
        *("readOnly", "writeOnly", "discriminator", "externalDocs", "xml"),
        *("contentMediaType", "contentEncoding", "contentSchema"),
    )
)
_ENFORCED = frozenset((*_MAPS, *_LISTS, *_SINGLE, *_NUMBERS, *_COUNTS, *_VALUES))
_SINCE = {"const": 6, "prefixItems": 2020}
_UNTIL = {"additionalItems": 2019}
# Keywords that say nothing with this value.
_IDLE = {"uniqueItems": False, "nullable": False, "unevaluatedProperties": True, "unevaluatedItems": True}
_HINTS = {"nullable": 'write "type": ["...", "null"]', "components": "move the definitions to $defs"}
_NUMBER_FORMATS = {
    "int32": {"minimum": -(1 << 31), "maximum": (1 << 31) - 1},
    "int64": {"minimum": -SAFE_INTEGER, "maximum": SAFE_INTEGER},
    "float": {},
    "double": {},
}
_FREE_FORMATS = ("password", "binary")  # say nothing about the text
_WHERE = "json_schema"


def prepare(schema: Schema, *, closed: bool) -> tuple[Schema, list[str]]:
    """The schema that llguidance gets, and texts that match its patterns.

    Raises PomonaError that names the place of what cannot be obeyed.
    """
    preparation = _Preparation(_draft(schema), closed)
    return preparation.root(schema), [example for example in preparation.examples if example]


def can_close(schema: Schema) -> bool:
    """Whether `closed` keeps the meaning: it does not where parts of a schema are joined into one object."""
    for part in _parts(schema):
        joined = [key for key in ("allOf", "anyOf", "oneOf", "$ref") if key in part]
        others = [
            key for key in part if key in _ENFORCED and key not in (*joined, "$defs", "definitions", "type")
        ]
        if len(joined) > 1 or (joined and others) or len(part.get("allOf", ())) > 1:
            return False
    return True


def has_one_of(schema: Schema) -> bool:
    return any("oneOf" in part for part in _parts(schema))


def _parts(schema: Any) -> Iterator[Schema]:
    """A prepared schema and all schemas in it."""
    pending = [schema]
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            yield part
            pending += [value for key in _MAPS for value in part.get(key, {}).values()]
            pending += [value for key in _LISTS for value in part.get(key, ())]
            for key in _SINGLE:
                value = part.get(key)
                pending += value if isinstance(value, list) else [value]


def _draft(schema: Schema) -> int:
    name = schema.get("$schema", "https://json-schema.org/draft/2020-12/schema")
    draft = _DRAFTS.get(name.removesuffix("#")) if isinstance(name, str) else None
    if draft is None:
        raise PomonaError(f"{_WHERE}: $schema {str(name)[:60]!r} is unknown; name a draft of 4 to 2020-12")
    return draft


class _Preparation:
    def __init__(self, draft: int, closed: bool) -> None:
        self._draft = draft
        self._closed = closed
        self.examples: dict[str, None] = {}
        self._count = 0
        self._places: dict[str, Schema | bool] = {}
        self._references: list[tuple[str, str]] = []

    def root(self, schema: Schema) -> Schema:
        result = self._schema({k: v for k, v in schema.items() if k not in ("$schema", "$id", "id")}, "#", 0)
        assert isinstance(result, dict)
        for place, target in self._references:
            if target not in self._places:
                raise _refused(place, f"$ref {target[:60]!r} leads to no schema of this document")
        for part in list(self._places.values()):
            if isinstance(part, dict) and "oneOf" in part:
                part["oneOf"] = [self._resolved(option) for option in part["oneOf"]]
        if "$schema" in schema:
            result["$schema"] = schema["$schema"]
        return result

    def _resolved(self, option: Schema | bool) -> Schema | bool:
        """What an option that is a reference refers to."""
        seen: set[str] = set()
        while isinstance(option, dict) and option.keys() == {"$ref"} and option["$ref"] not in seen:
            seen.add(option["$ref"])
            option = self._places[option["$ref"]]
        return copy.copy(option)

    def _schema(self, schema: Any, place: str, depth: int) -> Schema | bool:
        self._count += 1
        if self._count > MAX_SCHEMAS:
            raise PomonaError(f"{_WHERE}: more than {MAX_SCHEMAS:,} schemas in one document; simplify it")
        if depth > MAX_DEPTH:
            raise PomonaError(f"{_WHERE}: nested deeper than {MAX_DEPTH} levels; simplify it")
        self._places[place] = schema if isinstance(schema, bool) else {}
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise _refused(place, "a schema must be an object, true or false")
        result: Schema = {}
        self._places[place] = result
        for key, value in schema.items():
            if (
                key in _ANNOTATIONS
                or (key.startswith("x-") and key != "x-guidance")
                or _says_nothing(schema, key)
            ):
                continue
            if key not in _ENFORCED or not _SINCE.get(key, 0) <= self._draft <= _UNTIL.get(key, 9999):
                hint = _HINTS.get(key, "leave it out or say it by other keywords")
                raise _refused(place, f"{key[:60]!r} cannot be obeyed; {hint}")
            result[key] = self._keyword(key, value, place, depth)
        self._check_properties(schema, place)
        self._numbers(result, schema, place)
        self._strings(result, schema, place)
        if self._closed:
            _close(result)
        return result

    def _keyword(self, key: str, value: Any, place: str, depth: int) -> Any:
        inside = f"{place}/{key}"
        if key in _MAPS:
            if not isinstance(value, dict):
                raise _refused(place, f"{key} must be an object")
            made = {}
            for name, part in value.items():
                pointer = f"{inside}/{name.replace('~', '~0').replace('/', '~1')}"
                name = self._pattern(name, pointer) if key == "patternProperties" else name
                if name in made:
                    raise _refused(place, "two of the patternProperties are the same")
                made[name] = self._schema(part, pointer, depth + 1)
            return made
        if key in _LISTS or (key == "items" and isinstance(value, list) and self._draft < 2020):
            if not isinstance(value, list) or not value:
                raise _refused(place, f"{key} must be a list of schemas, and not empty")
            return [self._schema(part, f"{inside}/{index}", depth + 1) for index, part in enumerate(value)]
        if key in _SINGLE:
            if isinstance(value, list):
                raise _refused(place, "a list of items is prefixItems in this draft")
            return self._schema(value, inside, depth + 1)
        if key in _COUNTS:
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or value != int(value)
                or value < 0
            ):
                raise _refused(place, f"{key} must be a whole number, 0 or more")
            return int(value)
        if key in _NUMBERS and not (
            self._draft == 4 and isinstance(value, bool) and key.startswith("exclusive")
        ):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise _refused(place, f"{key} must be a number")
            _check_value(value, place)
        if key in ("const", "enum"):
            if key == "enum" and not isinstance(value, list):
                raise _refused(place, "enum must be a list")
            _check_value(value, place)
        if key == "pattern":
            if not isinstance(value, str):
                raise _refused(place, "pattern must be a text")
            return self._pattern(value, place)
        if key == "$ref":
            if not isinstance(value, str) or not (value == "#" or value.startswith("#/")):
                raise _refused(
                    place, f"$ref {str(value)[:60]!r}: only references within the schema, #/..., are followed"
                )
            self._references.append((place, value))
        return value

    def _pattern(self, pattern: str, place: str) -> str:
        translated, example = translate(pattern, _at(place))
        self.examples[example] = None
        return translated

    def _check_properties(self, schema: Schema, place: str) -> None:
        least, named = schema.get("minProperties", 0), schema.get("required", [])
        distinct = len(set(named)) if isinstance(named, list) else 0
        if least > distinct + 1:
            raise _refused(
                place,
                f"minProperties {least} cannot be obeyed: keys could be repeated; name them in `required`",
            )

    def _numbers(self, result: Schema, schema: Schema, place: str) -> None:
        if result.get("multipleOf", 1) <= 0:
            raise _refused(place, "multipleOf must be above 0")
        if (steps := Decimal(repr(result.get("multipleOf", 1))).normalize().as_tuple()) and len(
            steps.digits
        ) > 4:
            raise _refused(place, "multipleOf of more than four digits is too expensive")
        if result.get("format") in _NUMBER_FORMATS:
            bounds = _NUMBER_FORMATS[result.pop("format")]
            result.setdefault("allOf", []).append(dict(bounds))
        types = schema.get("type", "number")
        if "number" in (types if isinstance(types, list) else [types]):
            _include(result, "exclusiveMinimum", "minimum", 1)
            _include(result, "exclusiveMaximum", "maximum", -1)

    def _strings(self, result: Schema, schema: Schema, place: str) -> None:
        name = result.pop("format", None)
        if name is None or name in _FREE_FORMATS:
            return
        if not isinstance(name, str) or name not in FORMATS:
            known = ", ".join([*FORMATS, *_NUMBER_FORMATS])
            raise _refused(place, f"format {str(name)[:40]!r} cannot be obeyed; these can: {known}")
        pattern = f"^(?:{FORMATS[name]})$"
        if "pattern" in result:
            result.setdefault("allOf", []).append({"pattern": pattern})
        else:
            result["pattern"] = pattern


def _says_nothing(schema: Schema, key: str) -> bool:
    if key == "uniqueItems" and schema.get("maxItems", 2) in (0, 1):
        return True
    return key in _IDLE and schema[key] is _IDLE[key]


def _include(part: Schema, exclusive: str, inclusive: str, sign: int) -> None:
    """Says the exclusive bound of a number by the next one of DECIMALS decimals inside."""
    bound = part.pop(exclusive, False)
    if bound is True:
        bound = part.get(inclusive, False)
    if bound is False:
        return
    exact = Decimal(repr(bound))
    step = Decimal(1).scaleb(-max(min(DECIMALS, 15 - len(str(int(abs(exact))))), 0))
    inside = exact.quantize(step, ROUND_CEILING if sign > 0 else ROUND_FLOOR)
    value = float(inside + sign * step if inside == exact else inside)
    if inclusive in part:
        value = max(value, part[inclusive]) if sign > 0 else min(value, part[inclusive])
    part[inclusive] = value


def _close(part: Schema) -> None:
    named = part.get("properties")
    open_to_others = not {"additionalProperties", "patternProperties"} & part.keys()
    if named is not None and open_to_others and set(part.get("required", ())) <= named.keys():
        part["additionalProperties"] = False
    if part.get("type") == "integer" and not any(
        key in part for key in (*_NUMBERS, "allOf", "enum", "const")
    ):
        part["minimum"], part["maximum"] = -SAFE_INTEGER, SAFE_INTEGER


def _check_value(value: Any, place: str) -> None:
    """Numbers pass through 64-bit floats on their way: what they would change is refused."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            pending += item.values()
        elif isinstance(item, list):
            pending += item
        elif isinstance(item, int | float) and not (math.isfinite(item) and abs(item) <= SAFE_INTEGER):
            raise _refused(place, f"the number {str(item)[:40]} is beyond 2^53, where digits are lost")


def _at(place: str) -> str:
    return f"{_WHERE} at {place[:120]}"


def _refused(place: str, reason: str) -> PomonaError:
    return PomonaError(f"{_at(place)}: {reason}")
