"""Schemas as people write them: forms, records, tool calls, configuration files; and those of Pydantic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from guided_schemas import BOOL, INT, NUM, STR, Schema, arr, obj, pattern, text

SUITE = Path(__file__).parent / "schema_suite"


def made_by_pydantic() -> dict[str, Schema]:
    """Schemas of classes, written by Pydantic 2.14 (model_json_schema) and kept as they were."""
    schemas: dict[str, Schema] = json.loads((SUITE / "pydantic.json").read_text(encoding="utf-8"))
    return schemas


def tool(name: str, arguments: Schema) -> Schema:
    return obj({"name": {"const": name}, "arguments": arguments}, additionalProperties=False)


CLOSED: dict[str, Any] = {"additionalProperties": False}
POINT = {"type": "array", "prefixItems": [NUM, NUM], "items": False, "minItems": 2}

REAL: dict[str, Schema] = {
    "a form": obj(
        {"name": text(30, minLength=1), "email": {"type": "string", "format": "email"}},
        {"age": {"type": "integer", "minimum": 0, "maximum": 150}, "newsletter": BOOL},
    ),
    "an address": obj(
        {
            "street": text(30),
            "city": text(20),
            "zip": pattern(r"^\d{5}$"),
            "country": {"enum": ["DE", "FR", "IT"]},
        },
        **CLOSED,
    ),
    "an invoice": obj(
        {
            "number": pattern(r"^INV-\d{4}-\d{4}$"),
            "date": {"type": "string", "format": "date"},
            "lines": arr(
                obj({"text": text(15), "count": {"type": "integer", "minimum": 1}, "price": NUM}), 1, 3
            ),
            "paid": BOOL,
        }
    ),
    "a recipe": obj(
        {
            "title": text(30),
            "minutes": {"type": "integer", "minimum": 1, "maximum": 600},
            "ingredients": arr(
                obj({"name": text(15), "grams": {"type": "number", "exclusiveMinimum": 0}}), 1, 4
            ),
            "steps": arr(text(40), 1, 4),
        },
        {"vegetarian": BOOL},
    ),
    "a calendar entry": obj(
        {
            "title": text(20),
            "start": {"type": "string", "format": "date-time"},
            "minutes": {"enum": [15, 30, 60]},
        },
        {"guests": arr({"type": "string", "format": "email"}, 0, 2)},
    ),
    "a review": obj(
        {
            "sentiment": {"enum": ["positive", "neutral", "negative"]},
            "stars": {"type": "integer", "minimum": 1, "maximum": 5},
            "reasons": arr(text(25), 0, 3),
        }
    ),
    "a summary with key points": obj({"summary": text(100), "points": arr(text(30), 2, 3)}),
    "entities": obj(
        {"entities": arr(obj({"text": text(12), "type": {"enum": ["PER", "LOC", "ORG"]}}), 0, 4)}
    ),
    "labels with scores": {
        "type": "object",
        "additionalProperties": {"type": "number", "minimum": 0, "maximum": 1},
        "minProperties": 1,
        "maxProperties": 4,
    },
    "GeoJSON": {
        "$defs": {"point": POINT},
        "oneOf": [
            obj({"type": {"const": "Point"}, "coordinates": {"$ref": "#/$defs/point"}}),
            obj({"type": {"const": "LineString"}, "coordinates": arr({"$ref": "#/$defs/point"}, 2, 3)}),
        ],
    },
    "a package file": obj(
        {"name": pattern("^[a-z][a-z0-9-]{0,20}$"), "version": pattern(r"^\d{1,2}\.\d{1,2}\.\d{1,2}$")},
        {
            "dependencies": {
                "type": "object",
                "additionalProperties": pattern(r"^[\^~]?\d{1,2}(\.\d{1,2}){0,2}$"),
            },
            "license": {"enum": ["MIT", "Apache-2.0"]},
            "private": BOOL,
        },
    ),
    "a compose file": obj(
        {
            "services": {
                "type": "object",
                "patternProperties": {"^[a-z]{1,8}$": obj({"image": text(20)}, {"ports": arr(INT)})},
                "additionalProperties": False,
                "minProperties": 1,
                "maxProperties": 2,
            }
        }
    ),
    "a log line": obj(
        {
            "time": {"type": "string", "format": "date-time"},
            "level": {"enum": ["DEBUG", "INFO", "WARN", "ERROR"]},
            "message": text(40),
        },
        {"request": {"type": "string", "format": "uuid"}, "peer": {"type": "string", "format": "ipv4"}},
    ),
    "a chess move": obj(
        {"from": pattern("^[a-h][1-8]$"), "to": pattern("^[a-h][1-8]$")}, {"promote": {"enum": list("QRBN")}}
    ),
    "a menu": {
        "$defs": {"entry": obj({"label": text(10)}, {"children": arr({"$ref": "#/$defs/entry"}, 0, 2)})},
        **arr({"$ref": "#/$defs/entry"}, 1, 2),
    },
    "a file tree": {
        "$defs": {
            "node": {
                "oneOf": [
                    obj({"kind": {"const": "file"}, "bytes": {"type": "integer", "minimum": 0}}),
                    obj({"kind": {"const": "folder"}, "entries": arr({"$ref": "#/$defs/node"}, 0, 2)}),
                ]
            }
        },
        "$ref": "#/$defs/node",
    },
    "a filter": {
        "$defs": {
            "f": {
                "anyOf": [
                    obj({"and": arr({"$ref": "#/$defs/f"}, 1, 2)}),
                    obj(
                        {
                            "field": pattern("^[a-z_]{1,8}$"),
                            "op": {"enum": ["=", "<", ">"]},
                            "value": {"type": ["string", "number"]},
                        }
                    ),
                ]
            }
        },
        "$ref": "#/$defs/f",
    },
    "a page of results": {
        "$defs": {
            "Pet": obj(
                {"id": {"type": "integer", "format": "int64"}, "name": text(10)},
                {"tag": {"type": ["string", "null"]}},
            ),
            "Error": obj({"code": {"type": "integer", "format": "int32"}, "message": text(20)}),
        },
        "anyOf": [
            obj(
                {
                    "items": arr({"$ref": "#/$defs/Pet"}, 0, 2),
                    "next": {"anyOf": [{"type": "string", "format": "uri"}, {"type": "null"}]},
                }
            ),
            {"$ref": "#/$defs/Error"},
        ],
    },
    "a patch": arr(
        {
            "oneOf": [
                obj({"op": {"const": "remove"}, "path": {"type": "string", "format": "json-pointer"}}),
                obj(
                    {
                        "op": {"const": "add"},
                        "path": {"type": "string", "format": "json-pointer"},
                        "value": BOOL,
                    }
                ),
            ]
        },
        1,
        2,
    ),
    "a tool: the weather": tool(
        "get_weather", obj({"city": text(15)}, {"unit": {"enum": ["celsius", "fahrenheit"]}}, **CLOSED)
    ),
    "a tool without arguments": tool("get_time", {"type": "object", "properties": {}, **CLOSED}),
    "a tool: a transfer": tool(
        "transfer",
        obj(
            {
                "iban": pattern("^[A-Z]{2}[0-9]{2}[A-Z0-9]{11,20}$"),
                "cents": {"type": "integer", "minimum": 1},
            },
            **CLOSED,
        ),
    ),
    "one of three tools": {
        "anyOf": [
            tool(
                "search",
                obj(
                    {"query": text(20)}, {"limit": {"type": "integer", "minimum": 1, "maximum": 50}}, **CLOSED
                ),
            ),
            tool("open", obj({"url": {"type": "string", "format": "uri"}}, **CLOSED)),
            tool("done", {"type": "object", "properties": {}, **CLOSED}),
        ]
    },
    "several calls": arr(
        {
            "oneOf": [
                tool("add", obj({"a": INT, "b": INT})),
                tool("sleep", obj({"seconds": {"type": "number", "minimum": 0}})),
            ]
        },
        1,
        2,
    ),
    "a thought and an action": obj(
        {"thought": text(60), "action": {"enum": ["search", "answer"]}, "input": STR}
    ),
    "a quiz": obj(
        {"question": text(50), "options": arr(text(10), 4, 4), "correct": {"enum": ["A", "B", "C", "D"]}}
    ),
    "a translation": obj({"source": {"enum": ["en", "de"]}, "text": STR, "alternatives": arr(STR, 0, 2)}),
    "a schedule": {
        "type": "object",
        "required": ["mon", "tue"],
        "properties": {
            day: arr(pattern(r"^([01]\d|2[0-3]):[0-5]\d$"), 0, 2)
            for day in ("mon", "tue", "wed", "thu", "fri")
        },
    },
    "a person of a directory": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Person",
        "definitions": {"name": {"type": "string", "minLength": 1, "maxLength": 12}},
        **obj(
            {"first": {"$ref": "#/definitions/name"}, "last": {"$ref": "#/definitions/name"}},
            {"born": {"type": "string", "format": "date"}},
        ),
    },
    "settings": obj(
        {
            "theme": {"enum": ["dark", "light"]},
            "size": {"type": "number", "minimum": 0.5, "maximum": 3, "multipleOf": 0.5},
        },
        {"plugins": {"type": "object", "additionalProperties": obj({"enabled": BOOL})}},
    ),
}
