"""Schemas written by hand, one for each thing that a schema can say; real-life ones are in guided_real.py."""

from __future__ import annotations

import functools
from typing import Any

Schema = dict[str, Any]


def obj(required: Schema | None = None, optional: Schema | None = None, **more: Any) -> Schema:
    properties = {**(required or {}), **(optional or {})}
    return {"type": "object", "properties": properties, "required": list(required or {}), **more}


def arr(items: Any, low: int = 0, high: int | None = None) -> Schema:
    more = {} if high is None else {"maxItems": high}
    return {"type": "array", "items": items, "minItems": low, **more}


def text(high: int = 12, **more: Any) -> Schema:
    return {"type": "string", "maxLength": high, **more}


INT: Schema = {"type": "integer"}
NUM: Schema = {"type": "number"}
BOOL: Schema = {"type": "boolean"}
NULL: Schema = {"type": "null"}
STR: Schema = {"type": "string"}


def pattern(expression: str, **more: Any) -> Schema:
    return {"type": "string", "pattern": expression, **more}


FORMATTED = {
    f"format {name}": {"type": "string", "format": name}
    for name in (
        *("date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"),
        *("json-pointer", "byte", "password", "binary"),
    )
}

SCALARS: dict[str, Schema] = {
    "anything": {},
    "true and nothing else": {"const": True},
    "null": NULL,
    "boolean": BOOL,
    "string": STR,
    "integer": INT,
    "number": NUM,
    "several types": {"type": ["string", "integer", "null"], "maxLength": 5},
    "a nullable number": {"type": ["number", "null"]},
    "no type, only a bound": {"minimum": 3},
    "no type, only a length": {"maxLength": 3},
    "integers of a range": {"type": "integer", "minimum": -40, "maximum": 140},
    "integers above": {"type": "integer", "minimum": 1000},
    "integers below": {"type": "integer", "maximum": -7},
    "integers between exclusive bounds": {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 10},
    "multiples of 7": {"type": "integer", "multipleOf": 7, "minimum": 100, "maximum": 999},
    "multiples of 0.25": {"type": "number", "multipleOf": 0.25, "minimum": 0, "maximum": 10},
    "multiples of 0.5 without bounds": {"type": "number", "multipleOf": 0.5},
    "numbers of a range": {"type": "number", "minimum": -1.5, "maximum": 2.25},
    "numbers below 1": {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
    "numbers above 0": {"type": "number", "exclusiveMinimum": 0},
    "numbers in a narrow gap": {"type": "number", "exclusiveMinimum": 0.1, "exclusiveMaximum": 0.2},
    "numbers near a large bound": {"type": "number", "exclusiveMinimum": 99999, "exclusiveMaximum": 100000},
    "int32": {"type": "integer", "format": "int32"},
    "int64": {"type": "integer", "format": "int64"},
    "float": {"type": "number", "format": "float"},
    "strings of a length": {"type": "string", "minLength": 3, "maxLength": 8},
    "strings of one length": {"type": "string", "minLength": 4, "maxLength": 4},
    "the empty string": {"type": "string", "maxLength": 0},
    "long strings": {"type": "string", "minLength": 30},
    "strings up to 200": {"type": "string", "maxLength": 200},
    **FORMATTED,
    "a format and a length": {"type": "string", "format": "email", "maxLength": 20},
    "a format and a pattern": {"type": "string", "format": "date", "pattern": "^20"},
    "a format for strings in several types": {"type": ["string", "null"], "format": "uuid"},
}

PATTERNS: dict[str, Schema] = {
    "a code": pattern("^[A-Z]{3}-[0-9]{4}$"),
    "a part of the text": pattern("abc", maxLength=9),
    "a beginning or an end": pattern("^a|b$", maxLength=5),
    "groups": pattern("^(foo|bar)(-(foo|bar)){0,2}$"),
    "named groups": pattern("^(?P<year>[0-9]{4})/(?P<month>0[1-9]|1[0-2])$"),
    "short classes": pattern(r"^\d{2}\s\w{1,5}$"),
    "opposite classes": pattern(r"^\D\S\W$"),
    "classes in brackets": pattern(r"^[\w.-]{1,8}$"),
    "classes in negated brackets": pattern(r"^[^\s\d,]{2,6}$"),
    "opposite classes in negated brackets": pattern(r"^[^\D]{3}$"),
    "any character": pattern(r"^[\s\S]{2,4}$"),
    "a dot": pattern("^.{3}$"),
    "brackets with special characters": pattern(r"^[\[\]^&~-]{1,4}$"),
    "brackets that Rust reads otherwise": pattern("^[a&&b]{2}$"),
    "characters that JSON escapes": pattern(r'^["\\/]{1,3}$'),
    "control characters": pattern(r"^[\x01\t\n\u001f]{1,3}$"),
    "letters beyond ASCII": pattern("^[äöüß]{1,4}$"),
    "an emoji": pattern("^(😀|🍎){1,2}$"),
    "escaped signs": pattern(r"^\$\d{1,3}\.\d{2}\/h$"),
    "counts in braces that are none": pattern(r"^a{b}$"),
    "lazy repetition": pattern("^a+?b*?$", maxLength=6),
    "a hexadecimal colour": pattern("^#(?:[0-9a-fA-F]{3}){1,2}$"),
    "a semantic version": pattern(r"^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z-]{1,8})?$"),
    "a phone number": pattern(r"^(\([0-9]{3}\))?[0-9]{3}-[0-9]{4}$"),
    "something rare at the end": pattern("^[a-z]+@x$"),
    "a pattern and a length": pattern("^[ab]*$", minLength=3, maxLength=5),
    "the empty pattern": pattern("", maxLength=3),
}

VALUES: dict[str, Schema] = {
    "a list of texts": {"enum": ["red", "green", "blue"]},
    "values of every type": {"enum": ["red", 3, None, True, 2.5, [1, "a"], {"k": []}]},
    "one value": {"enum": ["only"]},
    "texts that begin alike": {"enum": ["a", "ab", "abc", "abcd", "b"]},
    "texts with everything": {"enum": ['"', "\\", "\n", "é", "日本", "😀", "", "</s>", "a\tb"]},
    "values filtered by a type": {"type": "integer", "enum": ["1", 1, 2, 2.5, None]},
    "a large list": {"enum": [f"item-{index:04}" for index in range(2000)]},
    "many numbers": {"enum": [index * index for index in range(300)]},
    "a constant object": {"const": {"a": [1, {"b": None}], "é\n": "x"}},
    "a constant text": {"const": 'a "quoted" text\nwith two lines'},
    "a constant list": {"const": [[], {}, [[]]]},
    "constant fractions": {"enum": [0.1, 0.30000000000000004, -2.5, 1e-7, 123456.789]},
    "a constant -1": {"const": -1},
    "constants of an object": obj({"kind": {"const": "circle"}, "version": {"const": 2}}),
}

ARRAYS: dict[str, Schema] = {
    "an array of anything": {"type": "array", "maxItems": 3},
    "an empty array": {"type": "array", "maxItems": 0},
    "one to three booleans": arr(BOOL, 1, 3),
    "exactly four integers": arr({"type": "integer", "minimum": 0, "maximum": 9}, 4, 4),
    "an array without an end": arr(text(6), 2),
    "arrays in arrays": arr(arr(arr(BOOL, 1, 2), 1, 2), 1, 2),
    "a pair": {"type": "array", "prefixItems": [text(), INT], "items": False, "minItems": 2},
    "an open tuple": {
        "type": "array",
        "prefixItems": [text(), INT],
        "items": BOOL,
        "minItems": 3,
        "maxItems": 5,
    },
    "a tuple that may be short": {"type": "array", "prefixItems": [BOOL, NULL], "items": False},
    "a tuple with a minimum beyond": {
        "type": "array",
        "prefixItems": [BOOL],
        "minItems": 3,
        "items": INT,
        "maxItems": 4,
    },
    "a tuple of draft 7": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "array",
        "items": [BOOL, text()],
        "additionalItems": False,
        "minItems": 2,
    },
    "an open tuple of draft 2019-09": {
        "$schema": "https://json-schema.org/draft/2019-09/schema",
        "type": "array",
        "items": [BOOL],
        "additionalItems": INT,
        "minItems": 2,
        "maxItems": 3,
    },
    "unique by having one": {"type": "array", "items": INT, "maxItems": 1, "uniqueItems": True},
    "uniqueness that is not asked": {**arr(INT, 0, 3), "uniqueItems": False},
    "a grid": arr(arr({"enum": [0, 1]}, 3, 3), 3, 3),
}

OBJECTS: dict[str, Schema] = {
    "an empty object": {"type": "object", "additionalProperties": False},
    "any object": {"type": "object"},
    "required and optional": obj({"a": INT, "b": text()}, {"c": BOOL, "d": NULL}),
    "only optional": obj({}, {"a": INT, "b": BOOL, "c": text(4)}, additionalProperties=False),
    "optional before required": {
        "type": "object",
        "properties": {"a": INT, "b": BOOL, "z": text()},
        "required": ["z"],
        "additionalProperties": False,
    },
    "a required key without a schema": {"type": "object", "required": ["name"], "properties": {"n": INT}},
    "others allowed": obj({"a": INT}, additionalProperties=True),
    "others of a type": obj({"a": INT}, additionalProperties=BOOL),
    "a map of integers": {"type": "object", "additionalProperties": INT},
    "a map with an entry": {"type": "object", "additionalProperties": text(5), "minProperties": 1},
    "a map of one or two": {
        "type": "object",
        "additionalProperties": BOOL,
        "minProperties": 1,
        "maxProperties": 2,
    },
    "at least as many as required": {
        **obj({"a": BOOL, "b": BOOL}),
        "minProperties": 3,
        "additionalProperties": NULL,
    },
    "exactly one of the optional": {
        **obj({}, {"a": BOOL, "b": BOOL, "c": BOOL}, additionalProperties=False),
        "minProperties": 1,
        "maxProperties": 1,
    },
    "at least one of the optional": obj(
        {}, {"a": INT, "b": INT}, additionalProperties=False, minProperties=1
    ),
    "keys of a pattern": {
        "type": "object",
        "patternProperties": {"^x-[a-z]{1,6}$": INT},
        "additionalProperties": False,
    },
    "keys of two patterns": {
        "type": "object",
        "patternProperties": {"^s_": text(5), r"^i_\d$": INT},
        "additionalProperties": False,
        "maxProperties": 3,
    },
    "keys of a pattern and named ones": {
        **obj(
            {"id": INT}, {"x-a": {"minimum": 5}}, patternProperties={"^x-": INT}, additionalProperties=False
        ),
    },
    "keys of a pattern and others": {
        "type": "object",
        "patternProperties": {"^a": INT},
        "additionalProperties": BOOL,
    },
    "keys beyond ASCII": obj({"größe": INT, "名前": text(6), "😀": BOOL}),
    "keys that JSON escapes": obj(
        {'say "hi"': BOOL, "back\\slash": NULL, "new\nline": INT, "\t": BOOL, "": NULL}
    ),
    "keys with spaces and signs": obj({"first name": text(), "a/b": INT, "a~b": INT, "$ref%": BOOL}),
    "keys that begin alike": obj(
        {"order": INT, "orderId": INT}, {"orderName": text(), "orderNameLong": BOOL}
    ),
    "a forbidden key": {
        "type": "object",
        "properties": {"a": INT, "b": False},
        "maxProperties": 1,
        "required": ["a"],
    },
    "objects in objects": obj({"a": obj({"b": obj({"c": obj({"d": obj({"e": BOOL})})})})}),
    "twenty levels": functools.reduce(lambda inner, _: obj({"x": inner}), range(20), BOOL),
    "forty properties": obj({f"field_{index}": BOOL for index in range(40)}),
    "fifty optional properties": obj({}, {f"field_{index}": INT for index in range(50)}),
    "an object that may be null": {"anyOf": [obj({"a": INT}), NULL]},
}

JOINED: dict[str, Schema] = {
    "any of some types": {"anyOf": [INT, text(5), NULL]},
    "any of some objects": {"anyOf": [obj({"a": INT}), obj({"b": text(5)}), obj({"a": BOOL, "c": NULL})]},
    "any of, with keys beside": {
        **obj({"id": {"type": "integer", "minimum": 0}}, {"mail": text(9), "phone": text(9)}),
        "anyOf": [{"required": ["mail"]}, {"required": ["phone"]}],
    },
    "one of some types": {"oneOf": [{"type": "integer", "maximum": 5}, text(3), BOOL]},
    "one of some tagged objects": {
        "oneOf": [
            obj({"type": {"const": "dog"}, "barks": BOOL}),
            obj({"type": {"const": "cat"}, "lives": {"type": "integer", "minimum": 1, "maximum": 9}}),
        ]
    },
    "one of two constants": {"oneOf": [{"const": "on"}, {"const": "off"}]},
    "all of": {"allOf": [{"type": "integer"}, {"minimum": 3}, {"maximum": 8}]},
    "all of some objects": {"allOf": [obj({"a": INT}), obj({"b": text(5)}), {"required": ["c"]}]},
    "all of one, with a description": {"allOf": [obj({"a": INT})], "description": "as Pydantic 1 wrote it"},
    "all of patterns": {"type": "string", "allOf": [{"pattern": "^a"}, {"pattern": "z$"}, {"maxLength": 6}]},
    "all of, closed": {"allOf": [obj({"a": INT}, {"b": BOOL})], "properties": {"a": {"maximum": 5}}},
    "any of in all of": {
        "allOf": [{"anyOf": [{"minimum": 10}, {"maximum": 3}]}, {"type": "integer", "minimum": 0}]
    },
    "any of in any of": {"anyOf": [{"anyOf": [NULL, BOOL]}, {"anyOf": [INT, arr(INT, 1, 2)]}]},
    "a type beside any of": {"type": "object", "anyOf": [obj({"x": INT}), obj({"y": INT})]},
    "texts with different limits": {"anyOf": [text(2), pattern("^[0-9]{8}$")]},
}

REFERENCES: dict[str, Schema] = {
    "a definition": {"$defs": {"n": {"type": "integer", "minimum": 0}}, **obj({"a": {"$ref": "#/$defs/n"}})},
    "definitions of old": {"definitions": {"n": BOOL}, **obj({"a": {"$ref": "#/definitions/n"}})},
    "a reference at the top": {"$defs": {"p": obj({"x": INT})}, "$ref": "#/$defs/p"},
    "references in a row": {
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/c"}, "c": BOOL},
        **arr({"$ref": "#/$defs/a"}, 1, 2),
    },
    "a reference with a bound beside": {
        "$defs": {"n": INT},
        **obj({"a": {"$ref": "#/$defs/n", "minimum": 3, "maximum": 5}}),
    },
    "a reference to a property": obj(
        {"a": {"type": "integer", "maximum": 3}, "b": {"$ref": "#/properties/a"}}
    ),
    "names that pointers escape": {
        "$defs": {"a/b": BOOL, "c~d": INT, "e f": NULL},
        **obj({"x": {"$ref": "#/$defs/a~1b"}, "y": {"$ref": "#/$defs/c~0d"}}),
    },
    "a tree": obj({"value": INT}, {"children": arr({"$ref": "#"}, 0, 2)}),
    "a linked list": {
        "$defs": {"node": obj({"v": BOOL, "next": {"anyOf": [{"$ref": "#/$defs/node"}, NULL]}})},
        "$ref": "#/$defs/node",
    },
    "an expression": {
        "$defs": {
            "e": {
                "anyOf": [
                    obj({"op": {"enum": ["+", "*"]}, "l": {"$ref": "#/$defs/e"}, "r": {"$ref": "#/$defs/e"}}),
                    {"type": "integer", "minimum": 0, "maximum": 99},
                ]
            }
        },
        "$ref": "#/$defs/e",
    },
    "two that hold each other": {
        "$defs": {
            "a": obj({"n": BOOL}, {"b": {"$ref": "#/$defs/b"}}),
            "b": obj({"t": NULL}, {"a": {"$ref": "#/$defs/a"}}),
        },
        "$ref": "#/$defs/a",
    },
    "a list of lists of lists": {"$defs": {"l": arr({"$ref": "#/$defs/l"}, 0, 3)}, "$ref": "#/$defs/l"},
    "any JSON, spelt out": {
        "$defs": {
            "json": {
                "anyOf": [
                    *(NULL, BOOL, NUM, text(8), arr({"$ref": "#/$defs/json"}, 0, 3)),
                    {"type": "object", "additionalProperties": {"$ref": "#/$defs/json"}, "maxProperties": 3},
                ]
            }
        },
        "$ref": "#/$defs/json",
    },
}

NOTES: dict[str, Schema] = {
    "annotations": {
        "title": "T",
        "description": "D",
        "$comment": "C",
        "default": 1,
        "examples": [1],
        "deprecated": True,
        "readOnly": True,
        "writeOnly": False,
        "x-order": 3,
        "type": "integer",
        "maximum": 9,
    },
    "an identifier": {
        "$id": "https://example.com/s",
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **BOOL,
    },
    "a length written as a fraction": {"type": "string", "maxLength": 4.0},
    "media type": {"type": "string", "contentMediaType": "application/json", "maxLength": 9},
    "exclusive bounds of draft 4": {
        "$schema": "http://json-schema.org/draft-04/schema#",
        "type": "number",
        "minimum": 0,
        "exclusiveMinimum": True,
        "maximum": 9,
        "exclusiveMaximum": True,
    },
    "nothing that unevaluated could refuse": {"unevaluatedProperties": True, **obj({"a": BOOL})},
}

BY_HAND: dict[str, Schema] = {
    name: schema
    for group in (SCALARS, PATTERNS, VALUES, ARRAYS, OBJECTS, JOINED, REFERENCES, NOTES)
    for name, schema in group.items()
}
