"""Schemas that are refused, each with what the error says: what llguidance cannot express or would skip."""

from __future__ import annotations

import json
from typing import Any

from guided_schemas import BOOL, INT, NULL, STR, Schema, arr, obj, pattern

OLD = "http://json-schema.org/draft-07/schema#"


def keyword(name: str, value: Any, **beside: Any) -> tuple[Schema, str]:
    return {name: value, **beside}, f"'{name.replace('$', '.')}' cannot be obeyed"


REFUSED: dict[str, tuple[Schema, str]] = {
    # Keywords that nobody obeys here.
    "not": keyword("not", {"type": "null"}),
    "if": keyword("if", {"type": "null"}, then=False),
    "then alone": keyword("then", False),
    "else alone": keyword("else", False),
    "uniqueItems": keyword("uniqueItems", True, type="array"),
    "contains": keyword("contains", INT),
    "minContains": keyword("minContains", 1),
    "maxContains": keyword("maxContains", 1),
    "propertyNames": keyword("propertyNames", {"pattern": "^a"}),
    "dependentRequired": keyword("dependentRequired", {"a": ["b"]}),
    "dependentSchemas": keyword("dependentSchemas", {"a": {"required": ["b"]}}),
    "dependencies": keyword("dependencies", {"a": ["b"]}, **{"$schema": OLD}),
    "unevaluatedProperties": keyword("unevaluatedProperties", False),
    "unevaluatedItems": keyword("unevaluatedItems", False),
    "$dynamicRef": keyword("$dynamicRef", "#node"),
    "$recursiveRef": keyword("$recursiveRef", "#"),
    "$anchor": keyword("$anchor", "here"),
    "$vocabulary": keyword("$vocabulary", {}),
    "an $id below the top": (obj({"a": {"$id": "https://example.com/a", **INT}}), "'.id' cannot be obeyed"),
    "a $schema below the top": (obj({"a": {"$schema": OLD, **INT}}), "'.schema' cannot be obeyed"),
    # What llguidance skips without a word.
    "a misspelt keyword": keyword("minLenght", 3, type="string"),
    "OpenAPI's nullable": ({"type": "string", "nullable": True}, "'nullable' cannot be obeyed; write"),
    "OpenAPI's components": keyword("components", {"schemas": {"A": INT}}),
    "llguidance's own options": keyword("x-guidance", {"lenient": True}),
    "prefixItems in draft 7": keyword("prefixItems", [INT], **{"$schema": OLD}),
    "const in draft 4": keyword("const", 1, **{"$schema": "http://json-schema.org/draft-04/schema#"}),
    "additionalItems in draft 2020-12": keyword("additionalItems", False),
    "a list of items in draft 2020-12": ({"items": [INT]}, "prefixItems"),
    "an unknown format": ({"type": "string", "format": "isbn"}, "format 'isbn' cannot be obeyed"),
    "an unknown format of numbers": ({"type": "integer", "format": "even"}, "format 'even' cannot be obeyed"),
    "the format called unknown": ({"type": "string", "format": "unknown"}, "format 'unknown'"),
    "a constant beyond 2^53": ({"const": 2**53 + 1}, "beyond 2.53"),
    "a bound beyond 2^53": ({"type": "integer", "minimum": 2**53 + 1}, "beyond 2.53"),
    "an infinite constant": ({"enum": [1, float("inf")]}, "beyond 2.53"),
    "entries that could be one key": (
        {"type": "object", "additionalProperties": INT, "minProperties": 2},
        "keys could be repeated",
    ),
    "another draft": ({"$schema": "https://example.com/own", **INT}, "is unknown"),
    # References.
    "a reference to another document": ({"$ref": "other.json"}, "only references within"),
    "a reference by name": ({"$ref": "#name"}, "only references within"),
    "a reference to nothing": ({"$ref": "#/$defs/missing"}, "leads to no schema"),
    "a reference to what is no schema": ({"title": "t", "$ref": "#/title"}, "leads to no schema"),
    "a reference to itself": ({"$ref": "#"}, "no answer of"),
    "two references in a circle": (
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        "no answer of",
    ),
    "an object that must hold itself": (obj({"a": {"$ref": "#"}}), "no answer of"),
    # Joined schemas.
    "one of two that overlap": ({"oneOf": [{"minimum": 1}, {"maximum": 5}]}, "oneOf"),
    "one of, where closing would hide the overlap": (
        {"oneOf": [obj({"a": INT}), obj({}, {"b": INT})]},
        "oneOf",
    ),
    "an empty oneOf": ({"oneOf": []}, "not empty"),
    "an empty allOf": ({"allOf": []}, "not empty"),
    # Nothing fits.
    "no value": ({"enum": []}, "cannot be used"),
    "no type": ({"type": []}, "cannot be used"),
    "an unknown type": ({"type": "nonsense"}, "cannot be used"),
    "bounds that cross": ({"type": "integer", "minimum": 3, "maximum": 2}, "cannot be used"),
    "lengths that cross": ({"type": "string", "minLength": 3, "maxLength": 2}, "cannot be used"),
    "counts that cross": (arr(INT, 3, 2), "cannot be used"),
    "a pattern and a length that exclude each other": (pattern("^a$", minLength=3), "cannot be used"),
    "types that exclude each other": ({"allOf": [INT, STR]}, "cannot be used"),
    "a required key that is forbidden": (obj({"a": False}), "cannot be used"),
    "a required key that no schema allows": (
        {"type": "object", "required": ["a"], "additionalProperties": False},
        "cannot be used",
    ),
    # Patterns.
    "a pattern that looks ahead": (pattern("^(?=a)"), "looks around"),
    "a pattern that looks back": (pattern(r"(a)\1"), "not supported"),
    "a word boundary": (pattern(r"\bword"), "not supported"),
    "a flag": (pattern("(?i)abc"), "sets flags"),
    "half a surrogate": (pattern(r"\ud83d"), "not supported"),
    "an ambiguous count": (pattern("a{,3}"), "different things"),
    "a possessive repetition": (pattern("a++"), "repeated"),
    "an open bracket": (pattern("[a"), "ends in the middle"),
    "an open group": (pattern("(a"), "not closed"),
    "patterns of keys that overlap": ({"patternProperties": {"^a": INT, "a$": BOOL}}, "cannot be used"),
    # No schema.
    "a list as a schema": (obj({"a": []}), "must be an object"),
    "a text as a length": ({"minLength": "3"}, "whole number"),
    "a broken length": ({"maxLength": 2.5}, "whole number"),
    "a text as a bound": ({"minimum": "3"}, "must be a number"),
    "a text as required": ({"type": "object", "required": "a"}, "cannot be used"),
    "properties that are a list": ({"properties": []}, "must be an object"),
    "a number as a pattern": ({"pattern": 3}, "must be a text"),
    "multiples of 0": ({"multipleOf": 0}, "above 0"),
    # What would take too long.
    "too many levels": ({"x-deep": 1, **json.loads('{"items":' * 61 + "{}" + "}" * 61)}, "deeper"),
    "multiples of a large number": ({"type": "integer", "multipleOf": 99991}, "too expensive"),
    "a million items": (arr(NULL, 10**6), "no answer of"),
    "a pattern that explodes": (pattern("^(a{1000}){1000}$"), "cannot be used"),
    "an object that doubles": (
        {
            "$defs": {
                **{
                    f"d{i}": obj({"l": {"$ref": f"#/$defs/d{i + 1}"}, "r": {"$ref": f"#/$defs/d{i + 1}"}})
                    for i in range(20)
                },
                "d20": NULL,
            },
            "$ref": "#/$defs/d0",
        },
        "no answer of",
    ),
    "a product of alternatives": (
        {"allOf": [{"anyOf": [{"properties": {f"p{j}_{i}": INT}} for i in range(10)]} for j in range(6)]},
        "cannot be used",
    ),
}
