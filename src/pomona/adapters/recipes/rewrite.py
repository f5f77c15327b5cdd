"""rewrite: messages of one intent in four tones (blunt, friendly, professional, concise), written by hand.

A row takes one or two intents in one tone as the content and the same ones in another tone as the answer. For
`concise` the content may also be the concise text with padding around it. Every fourth intent is held out.
The wordings lie in texts/intents.txt.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from pomona.adapters.recipes.injections import inject
from pomona.adapters.recipes.names import World
from pomona.adapters.recipes.rows import HELD_OUT_SEED, OWN, OWN_LICENSE, RecipeOptions
from pomona.adapters.recipes.tables import part, table
from pomona.adapters.tasks.task import Example, Request

HELD_OUT_ROWS = 150
INJECTED = 0.05
TONES = ("blunt", "friendly", "professional", "concise")

_DOCS = ("report", "contract", "offer", "invoice", "budget", "schedule", "plan", "summary")
_PADDING = (
    ("I just wanted to write to you in order to say the following: ", ""),
    ("As you may or may not already know, ", " I thought that it might be useful for you to know this."),
    ("I hope that this message finds you well. ", " Thank you very much in advance for your time."),
    ("To be completely honest with you, at this point in time I would like to say this: ", ""),
    ("", " Please do not hesitate to get in touch with me if there is anything at all that is unclear."),
    ("Basically, what I am trying to say is this: ", " That is really all that I wanted to say."),
)


def examples(options: RecipeOptions) -> Iterator[Example]:
    return _stream(World(options.rng("rewrite")))


def held_out(folder: Path) -> list[Example]:
    """Needs no data folder."""
    del folder
    stream = _stream(World(random.Random(HELD_OUT_SEED), held_out=True))
    return [next(stream) for _ in range(HELD_OUT_ROWS)]


def _stream(world: World) -> Iterator[Example]:
    rng = world.rng
    while True:
        chosen = rng.sample(part(table("intents"), held_out=world.held_out), rng.choice((1, 1, 2)))
        slots = _slots(world)
        target = rng.choice(TONES[1:])
        answer = _said(chosen, TONES.index(target), slots)
        if target == "concise" and rng.random() < 0.5:
            before, after = rng.choice(_PADDING)
            text = before + answer + after
        else:
            other = rng.choice([tone for tone in TONES if tone not in (target, "concise")])
            text = _said(chosen, TONES.index(other), slots)
        if text == answer:
            continue
        if rng.random() < INJECTED and target == "professional":
            order, _ = inject(text, rng, held_out=world.held_out)
            extra = order.replace(text, "").strip()
            text, answer = (
                f"{text}\n{extra}",
                f"{answer}\n{extra}",
            )  # rewritten text keeps it, and obeys it not
        yield Example(Request(text, target), answer, OWN, OWN_LICENSE)


def _said(chosen: list[tuple[str, ...]], tone: int, slots: dict[str, str]) -> str:
    return " ".join(row[tone].format(**slots) for row in chosen)


def _slots(world: World) -> dict[str, str]:
    times = world.times()
    return {
        "doc": world.rng.choice(_DOCS),
        "day": world.day(),
        "d2": world.date(),
        "m": world.amount(),
        "a": world.people(1)[0],
        "t": times[0],
        "t2": times[1],
        "f": world.firm(),
        "c": world.pick("cities"),
    }
