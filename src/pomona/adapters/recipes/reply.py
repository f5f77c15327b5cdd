"""reply: questions and replies of invented mails (scenes.py); a fifth of them with an injected order."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from pomona.adapters.recipes.injections import inject
from pomona.adapters.recipes.names import World
from pomona.adapters.recipes.rows import HELD_OUT_SEED, OWN, OWN_LICENSE, RecipeOptions
from pomona.adapters.recipes.scenes import mail, thread
from pomona.adapters.tasks.reply import Replies
from pomona.adapters.tasks.task import Example, Request

HELD_OUT_ROWS = 150
INJECTED = 0.2


def examples(options: RecipeOptions) -> Iterator[Example]:
    return _stream(World(options.rng("reply")))


def held_out(folder: Path) -> list[Example]:
    """Needs no data folder."""
    del folder
    stream = _stream(World(random.Random(HELD_OUT_SEED), held_out=True))
    return [next(stream) for _ in range(HELD_OUT_ROWS)]


def _stream(world: World) -> Iterator[Example]:
    rng = world.rng
    while True:
        found = mail(world) if rng.random() < 0.8 else thread(world)
        text = found.text
        if rng.random() < INJECTED:
            text, _ = inject(text, rng, held_out=world.held_out)
        replies = rng.sample(found.replies, 3)  # no order among them is better
        answer = Replies(questions=list(found.questions), replies=replies).model_dump_json()
        yield Example(Request(text), answer, OWN, OWN_LICENSE)
