"""Notifications with what they come down to, and whether they are urgent: something is lost if nobody looks
at it within the hour (safety, money, somebody waiting). Every fourth template of each kind is held out.

The templates lie in texts/urgent.txt and texts/not_urgent.txt: app | text | gist, with {a} and {b} for
people, {t} for a time, {d} a day, {m} an amount, {c} a city, {f} a firm.
"""

from __future__ import annotations

from dataclasses import dataclass

from pomona.adapters.recipes.names import World
from pomona.adapters.recipes.tables import part, table


@dataclass(frozen=True)
class Notification:
    app: str
    text: str
    gist: str
    urgent: bool
    kind: str  # the gist before names were filled in: equal for notifications of one template

    @property
    def line(self) -> str:
        return f"{self.app}: {self.text}"


def notification(world: World, urgent: bool | None = None) -> Notification:
    """One notification of templates and names that belong to the world's part."""
    if urgent is None:
        urgent = world.rng.random() < 0.4
    app, text, gist = world.rng.choice(
        part(table("urgent" if urgent else "not_urgent"), held_out=world.held_out)
    )
    a, b = world.people(2)
    slots = {
        "a": a,
        "b": b,
        "t": world.time(),
        "d": world.day(),
        "m": world.amount(),
        "c": world.pick("cities"),
        "f": world.firm(),
    }
    return Notification(app, text.format(**slots), gist.format(**slots), urgent, gist)


def stack(world: World) -> list[Notification]:
    """Two to five notifications of different templates."""
    found: dict[str, Notification] = {}
    size = world.rng.randint(2, 5)
    while len(found) < size:
        one = notification(world)
        found[one.kind] = one
    return list(found.values())
