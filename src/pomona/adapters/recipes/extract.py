"""extract: texts made from templates, whose data is known, and web pages with schema.org data.

Invented rows ask for contacts and events (`FACTS`) or for a record with other keys, in any order, so that the
schema and not the habit decides what is answered. With a data folder: the visible text of pages of
html_extruct, with a schema of those keys whose values can be read in it. Pages are cut in two by name: one
part trains, one is held out.
"""

from __future__ import annotations

import json
import random
import re
import string
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from pomona.adapters.recipes.injections import inject
from pomona.adapters.recipes.names import World
from pomona.adapters.recipes.rows import HELD_OUT_SEED, OWN, OWN_LICENSE, RecipeOptions, mixed
from pomona.adapters.recipes.tables import part, table
from pomona.adapters.tasks.extract import FACTS
from pomona.adapters.tasks.task import Example, Request
from pomona.data.public_sets import LICENSES, Page, extruct_pages

HELD_OUT_ROWS = 160
INJECTED = 0.1
LONGEST_PAGE = 1800  # characters of visible text
_KEYS = {"contact": ("name", "mail", "tel", "firm"), "event": ("title", "date", "time", "place")}
_PAGE_KEYS = (
    "name",
    "startDate",
    "telephone",
    "streetAddress",
    "addressLocality",
    "postalCode",
    "price",
    "brand",
)


def examples(options: RecipeOptions) -> Iterator[Example]:
    streams = [(1.0, _invented(World(options.rng("extract"))))]
    if options.data is not None:
        streams.append((0.02, _pages(options.data, held_out=False)))
    return mixed(options.rng("mix"), *streams)


def held_out(folder: Path) -> list[Example]:
    stream = _invented(World(random.Random(HELD_OUT_SEED), held_out=True))
    found = [next(stream) for _ in range(HELD_OUT_ROWS)]
    if (folder / "html_extruct").is_dir():
        found += _pages(folder, held_out=True)
    return found


def dumped(value: Any) -> str:
    """JSON as guided answers are written: without white space."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _invented(world: World) -> Iterator[Example]:
    rng = world.rng
    while True:
        request, answer = _facts(world) if rng.random() < 0.7 else _record(world)
        if rng.random() < INJECTED:
            text, _ = inject(request.content, rng, held_out=world.held_out)
            request = Request(text, schema=request.schema)
        yield Example(request, dumped(answer), OWN, OWN_LICENSE)


def _facts(world: World) -> tuple[Request, dict[str, Any]]:
    [template] = world.rng.choice(part(table("extract"), held_out=world.held_out))
    slots = {
        "job": world.pick("jobs"),
        "street": world.address(),
        "money": world.amount(),
        "word": world.day(),
    }
    for n in "01":
        name, firm = world.full_name(), world.firm()
        slots |= {
            f"name{n}": name,
            f"firm{n}": firm,
            f"tel{n}": world.phone(),
            f"mail{n}": world.email(name, firm),
        }
        slots |= {f"title{n}": world.pick("events"), f"place{n}": world.pick("places")}
        slots |= {f"date{n}": world.date(), f"time{n}": world.time()}
    used = {field for _, field, _, _ in string.Formatter().parse(template) if field}

    def value(key: str) -> str:
        return slots[key] if key in used else ""

    contacts = [
        {
            "name": value(f"name{n}"),
            "email": value(f"mail{n}"),
            "phone": value(f"tel{n}"),
            "company": value(f"firm{n}"),
        }
        for n in "01"
        if f"name{n}" in used
    ]
    events = [
        {key: value(f"{key}{n}") for key in _KEYS["event"]} for n in "01" if {f"title{n}", f"date{n}"} & used
    ]
    return Request(template.format(**slots), schema=FACTS), {"contacts": contacts, "events": events}


def _record(world: World) -> tuple[Request, dict[str, Any]]:
    rng = world.rng
    names, template = rng.choice(part(table("records"), held_out=world.held_out))
    keys = names.split(",")
    slots = {
        "product": world.pick("products"),
        "price": world.amount(),
        "amount": world.amount(),
        "shop": world.firm(),
        "sender": world.full_name(),
        "tenant": world.full_name(),
        "patient": world.full_name(),
        "doctor": world.full_name().split()[1],
        "order_number": f"{rng.choice('ABCDX')}-{rng.randrange(10_000, 99_999)}",
        "delivery_date": world.date(),
        "due_date": world.date(),
        "date": world.date(),
        "flight": f"{rng.choice(('PX', 'QN', 'ZL'))} {rng.randrange(100, 999)}",
        "departure": world.time(),
        "gate": f"{rng.choice('ABC')}{rng.randint(1, 40)}",
        "street": world.address(),
        "city": world.pick("cities"),
    }
    asked = list(keys)
    if rng.random() < 0.3:  # something that the text does not say
        asked.append(rng.choice([key for key in slots if key not in keys]))
    rng.shuffle(asked)
    schema = record_schema(asked)
    return Request(template.format(**slots), schema=schema), {
        key: slots[key] if key in keys else "" for key in asked
    }


def record_schema(keys: list[str]) -> dict[str, Any]:
    """An object of short texts."""
    return {
        "type": "object",
        "properties": {key: {"type": "string", "maxLength": 80} for key in keys},
        "required": list(keys),
        "additionalProperties": False,
    }


# --- pages


def _pages(folder: Path, *, held_out: bool) -> Iterator[Example]:
    for number, page in enumerate(extruct_pages(folder)):
        if (number % 2 == 1) != held_out:
            continue
        found = page_example(page)
        if found is not None:
            yield found


def page_example(page: Page) -> Example | None:
    """The first item with two or more values that can be read on the page."""
    text = visible_text(page.html)[:LONGEST_PAGE]
    for item in page.items:
        values = {
            key: value
            for key, value in _leaves(item).items()
            if key in _PAGE_KEYS and 0 < len(value) <= 80 and value in text
        }
        if len(values) >= 2:
            request = Request(text, schema=record_schema(list(values)))
            return Example(request, dumped(values), "html_extruct", LICENSES["html_extruct"])
    return None


def _leaves(item: Any) -> dict[str, str]:
    """key -> the first text under it, at any depth of `properties`."""
    found: dict[str, str] = {}
    if isinstance(item, dict):
        for key, value in item.items():
            if isinstance(value, str):
                found.setdefault(key, " ".join(value.split()))
        for value in item.values():
            for key, text in _leaves(value).items():
                found.setdefault(key, text)
    elif isinstance(item, list):
        for value in item:
            for key, text in _leaves(value).items():
                found.setdefault(key, text)
    return found


def visible_text(html: str) -> str:
    """What a reader sees: texts outside of head, script and style, one block per line."""
    parser = _Visible()
    parser.feed(html)
    parser.close()
    lines = (" ".join(line.split()) for line in "".join(parser.parts).split("\n"))
    return re.sub(r"\n{2,}", "\n", "\n".join(line for line in lines if line))


class _Visible(HTMLParser):
    _HIDDEN = frozenset(("script", "style", "head", "template", "noscript"))
    _INLINE = frozenset(
        [
            "a",
            "abbr",
            "b",
            "cite",
            "code",
            "em",
            "i",
            "mark",
            "meta",
            "q",
            "s",
            "small",
            "span",
            "strong",
            "sub",
            "sup",
            "time",
            "u",
            "link",
            "img",
        ]
    )

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        del attrs
        self._hidden += tag in self._HIDDEN
        if tag not in self._INLINE:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._HIDDEN:
            self._hidden = max(0, self._hidden - 1)
        if tag not in self._INLINE:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data.replace("\n", " "))
