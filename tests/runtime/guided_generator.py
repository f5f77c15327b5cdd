"""Random schemas, the same for the same seed."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from typing import Any

from guided_schemas import Schema

NAMES = (
    "id",
    "name",
    "größe",
    "a b",
    'q"q',
    "x-1",
    "type",
    "ns:key",
    "é",
    "very_long_property_name_of_it",
    "0",
)
WORDS = ("red", "deep blue", "", "ü", 'say "x"', "a\\b", "null", "12", "日本", "yes")
PATTERNS = ("^[a-z]{1,6}$", r"^\d{2,4}$", "^(ab|cd)+$", r"^\w{1,4}-\w{1,4}$", "[0-9]", "^[^a-z]{1,3}$", "x$")
KEYS = (("^k_[a-z]{1,4}$", "^k_a$"), (r"^\d{1,3}$", "^[A-Z]{1,4}$"))
FORMATS = ("date", "time", "date-time", "email", "ipv4", "uuid", "hostname")


class Generator:
    """Schemas that hold at least one value by construction: bounds in order, references that end."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._definitions: Schema = {}

    def document(self) -> Schema:
        schema = self.schema(depth=self._random.choice((1, 2, 2, 3)))
        return {"$defs": self._definitions, **schema} if self._definitions else schema

    def schema(self, depth: int) -> Schema:
        leaves: list[Callable[[], Schema]] = [self.text, self.integer, self.number, self.values, self.simple]
        nodes: list[Callable[[int], Schema]] = [
            *(self.object, self.object, self.object, self.array, self.array),
            *(self.tuple, self.any_of, self.reference, self.map, self.all_of),
        ]
        if depth == 0 or self._random.random() < 0.15:
            return self._random.choice(leaves)()
        return self._random.choice(nodes)(depth - 1)

    def simple(self) -> Schema:
        return {"type": self._random.choice(("boolean", "null", "string", "integer", "number"))}

    def text(self) -> Schema:
        kind = self._random.randrange(4)
        if kind == 0:
            return {"type": "string", "pattern": self._random.choice(PATTERNS), "maxLength": 20}
        if kind == 1:
            return {"type": "string", "format": self._random.choice(FORMATS)}
        low = self._random.randrange(4)
        return {"type": "string", "minLength": low, "maxLength": low + self._random.randrange(1, 16)}

    def integer(self) -> Schema:
        low = self._random.randrange(-10_000, 10_000)
        high = low + self._random.choice((1, 9, 100, 54_321))
        schema: Schema = {"type": "integer"}
        if self._random.random() < 0.7:
            schema[self._random.choice(("minimum", "exclusiveMinimum"))] = low - 1
        if self._random.random() < 0.7:
            schema[self._random.choice(("maximum", "exclusiveMaximum"))] = high + 1
        if self._random.random() < 0.2:
            schema["multipleOf"] = self._random.choice((1, 2))
        return schema

    def number(self) -> Schema:
        low = round(self._random.uniform(-100, 100), self._random.randrange(4))
        schema: Schema = {"type": "number"}
        if self._random.random() < 0.7:
            schema[self._random.choice(("minimum", "exclusiveMinimum"))] = low
        if self._random.random() < 0.7:
            schema[self._random.choice(("maximum", "exclusiveMaximum"))] = low + self._random.choice(
                (0.5, 1, 33.25)
            )
        return schema

    def values(self) -> Schema:
        pool: list[Any] = [*WORDS, 0, -1, 2.5, 10**6, True, False, None, [], [1, "x"], {"a": None}]
        if self._random.random() < 0.2:
            return {"const": self._random.choice(pool)}
        return {"enum": self._random.sample(pool, self._random.randrange(1, 6))}

    def object(self, depth: int) -> Schema:
        names = self._random.sample(NAMES, self._random.randrange(1, 6))
        schema: Schema = {"type": "object", "properties": {name: self.schema(depth) for name in names}}
        required = [name for name in names if self._random.random() < 0.6]
        if required or self._random.random() < 0.5:
            self._random.shuffle(required)
            schema["required"] = required
        others = self._random.randrange(4)
        if others < 2:
            schema["additionalProperties"] = False
        elif others == 2 and depth > 0:
            schema["additionalProperties"] = self.schema(0)
        return schema

    def map(self, depth: int) -> Schema:
        schema: Schema = {"type": "object"}
        if self._random.random() < 0.5:
            schema["additionalProperties"] = self.schema(depth)
        else:
            schema["patternProperties"] = {key: self.schema(depth) for key in self._random.choice(KEYS)[:1]}
            schema["additionalProperties"] = False
        if self._random.random() < 0.5:
            schema["minProperties"] = 1
        schema["maxProperties"] = self._random.randrange(1, 4)
        return schema

    def array(self, depth: int) -> Schema:
        low = self._random.randrange(3)
        schema = {"type": "array", "items": self.schema(depth), "minItems": low}
        if self._random.random() < 0.8:
            schema["maxItems"] = low + self._random.randrange(4)
        return schema

    def tuple(self, depth: int) -> Schema:
        items = [self.schema(depth) for _ in range(self._random.randrange(1, 4))]
        schema: Schema = {
            "type": "array",
            "prefixItems": items,
            "minItems": self._random.randrange(len(items) + 1),
        }
        schema["items"] = False if self._random.random() < 0.6 else self.schema(0)
        schema["maxItems"] = len(items) if schema["items"] is False else len(items) + 2
        return schema

    def any_of(self, depth: int) -> Schema:
        return {"anyOf": [self.schema(depth) for _ in range(self._random.randrange(1, 4))]}

    def all_of(self, depth: int) -> Schema:
        """Bounds in two parts, or an object and what it requires."""
        if self._random.random() < 0.5:
            return {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 3 + self._random.randrange(50)}]}
        schema = self.object(depth)
        return {"allOf": [schema, {"required": list(schema["properties"])[:1]}]}

    def reference(self, depth: int) -> Schema:
        """To a new definition, to an old one, or to one that holds itself."""
        if self._definitions and self._random.random() < 0.4:
            name = self._random.choice(sorted(self._definitions))
        else:
            name = f"d{len(self._definitions)}"
            self._definitions[name] = {}
            if self._random.random() < 0.3:
                more = {"more": {"anyOf": [{"type": "null"}, {"$ref": f"#/$defs/{name}"}]}}
                self._definitions[name] = {"type": "object", "properties": {"v": self.schema(0), **more}}
            else:
                self._definitions[name] = self.schema(depth)
        return {"$ref": f"#/$defs/{name}"}


def generated(count: int) -> dict[str, Schema]:
    """So many schemas, no two alike."""
    found: dict[str, Schema] = {}
    for seed in itertools.count():
        if len(found) == count:
            break
        found.setdefault(json.dumps(schema := Generator(seed).document()), schema)
    return {f"generated {number}": schema for number, schema in enumerate(found.values())}
