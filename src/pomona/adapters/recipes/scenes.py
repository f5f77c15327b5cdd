"""Invented mails with everything that a good assistant would say of them: written by hand, filled with names.

A scene has several wordings of the mail, and for each fact in it the words of a summary. All of a scene's
summaries hold only what all of its wordings say. Every fourth scene is held out.

Slots: {a} who writes, {b} who reads, {x} somebody else (three different people), {firm}, {city}, {room},
{day}, {day2} (another day), {time}, {time2}, {money}, {n} (a number from 3 to 40).
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from functools import cache
from typing import Any

from pomona.adapters.recipes.names import DAYS, ROOMS, World
from pomona.adapters.recipes.tables import part, text_of

_GREETINGS = ("Hi {b},", "Hello {b},", "Dear {b},", "{b},", "Hey {b},", "Good morning {b},")
_CLOSINGS = ("Best,\n{a}", "Thanks,\n{a}", "Kind regards,\n{a}", "{a}", "Cheers,\n{a}", "All the best,\n{a}")
_SMALL_TALK = (
    "I hope you are well.",
    "I hope the week is treating you kindly.",
    "It was good to see you the other day.",
    "Sorry for the slow answer, it has been busy here.",
    "I hope you had a nice weekend.",
    "Thanks for your last message.",
)


@dataclass(frozen=True)
class Scene:
    name: str
    subject: str
    bodies: tuple[str, ...]  # wordings of the mail, without greeting and closing
    one_line: str
    sentences: tuple[str, ...]
    points: tuple[str, ...]
    questions: tuple[str, ...]
    replies: tuple[str, ...]


@cache
def scenes() -> tuple[Scene, ...]:
    """The scenes of texts/scenes.jsonl."""
    rows: list[dict[str, Any]] = [json.loads(line) for line in text_of("scenes.jsonl").splitlines()]
    return tuple(Scene(**{key: _frozen(item) for key, item in row.items()}) for row in rows)


def _frozen(item: Any) -> Any:
    return tuple(item) if isinstance(item, list) else item


@dataclass(frozen=True)
class Mail:
    """One filled-in scene."""

    scene: str
    subject: str
    sender: str
    receiver: str
    body: str  # without greeting and closing
    text: str  # the whole mail
    one_line: str
    sentences: tuple[str, ...]
    points: tuple[str, ...]
    questions: tuple[str, ...]
    replies: tuple[str, ...]


def mail(world: World) -> Mail:
    """A mail from a scene and names of the world's part."""
    rng = world.rng
    scene = rng.choice(part(scenes(), held_out=world.held_out))
    slots = _slots(world)
    return _filled(scene, slots, rng)


def _slots(world: World) -> dict[str, str]:
    rng = world.rng
    a, b, x = world.people(3)
    day, day2 = rng.sample(DAYS, 2)
    time, time2 = world.times()
    return {
        "a": a,
        "b": b,
        "x": x,
        "firm": world.firm(),
        "city": world.pick("cities"),
        "room": rng.choice(ROOMS),
        "day": day,
        "day2": day2,
        "time": time,
        "time2": time2,
        "money": world.amount(),
        "n": str(rng.randint(3, 40)),
    }


def _filled(scene: Scene, slots: dict[str, str], rng: random.Random) -> Mail:
    def fill(text: str) -> str:
        return text.format(**slots)

    body = fill(rng.choice(scene.bodies))
    parts = [fill(rng.choice(_GREETINGS)), ""]
    if rng.random() < 0.5:
        parts += [rng.choice(_SMALL_TALK), ""]
    parts += [body, "", fill(rng.choice(_CLOSINGS))]
    text = "\n".join(parts)
    if rng.random() < 0.6:
        text = f"From: {slots['a']}\nTo: {slots['b']}\nSubject: {fill(scene.subject)}\n\n{text}"
    else:  # the summaries name sender and subject, so the mail must hold them
        text = f"Subject: {fill(scene.subject)}\n\n{text}"
    return Mail(
        scene.name,
        fill(scene.subject),
        slots["a"],
        slots["b"],
        body,
        text,
        fill(scene.one_line),
        tuple(map(fill, scene.sentences)),
        tuple(map(fill, scene.points)),
        tuple(map(fill, scene.questions)),
        tuple(map(fill, scene.replies)),
    )


def thread(world: World) -> Mail:
    """The same as a message thread: the body in pieces, with short answers of the reader between them."""
    found = mail(world)
    rng = world.rng
    pieces = [piece.strip() for piece in found.body.replace("? ", "?|").replace(". ", ".|").split("|")]
    lines = [f"{found.receiver}: {rng.choice(('hi!', 'hello', 'any news?', 'what is up?'))}"]
    for number, piece in enumerate(pieces):
        lines.append(f"{found.sender}: {piece[0].upper()}{piece[1:]}")
        if number < len(pieces) - 1 and rng.random() < 0.3:
            lines.append(f"{found.receiver}: {rng.choice(('ok', 'I see', 'hm', 'go on', 'right', '👍'))}")
    return Mail(**{**vars(found), "text": "\n".join(lines)})
