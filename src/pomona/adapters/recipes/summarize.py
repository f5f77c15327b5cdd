"""summarize: mails, threads and stacks of notifications with summaries.

- Invented ones (scenes.py, notifications.py) come with summaries that are right by construction.
- With a data folder: stretches of QMSum's validation meetings with their human summaries, if they pass the
  rules.
- With a writer: real mails, each with the best of several summaries that a model wrote (writer.py).

A quarter of the invented rows hold an injected order; the answer is the plain summary. Held out: other
scenes, names and wordings of orders, and QMSum's test meetings.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from pomona.adapters.faithfulness import faithful
from pomona.adapters.recipes.injections import inject
from pomona.adapters.recipes.names import World
from pomona.adapters.recipes.notifications import Notification, stack
from pomona.adapters.recipes.rows import HELD_OUT_SEED, OWN, OWN_LICENSE, RecipeOptions, mixed
from pomona.adapters.recipes.scenes import mail, thread
from pomona.adapters.tasks.summarize import fits_style
from pomona.adapters.tasks.task import Example, Request
from pomona.data.public_sets import LICENSES, mails, qmsum

INJECTED = 0.25
HELD_OUT_ROWS = 240
HELD_OUT_MEETINGS = 60
LONGEST_MEETING = 2400  # characters
STYLES = ("one line", "three sentences")


def examples(options: RecipeOptions) -> Iterator[Example]:
    streams = [(8.0, _invented(World(options.rng("invented"))))]
    if options.data is not None:
        streams.append((0.5, iter(_meetings(options.data, "val"))))
        if options.writer is not None:
            streams.append((1.0, _written(options)))
    return mixed(options.rng("mix"), *streams)


def held_out(folder: Path) -> list[Example]:
    """The folder is needed for QMSum alone; without that set only invented ones are given."""
    stream = _invented(World(random.Random(HELD_OUT_SEED), held_out=True))
    found = [next(stream) for _ in range(HELD_OUT_ROWS)]
    if (folder / "qmsum").is_dir():
        found += _meetings(folder, "test")[:HELD_OUT_MEETINGS]
    return found


def contents_with_orders(count: int) -> list[Example]:
    """Held-out contents that carry an order each; none of them is in `held_out`."""
    stream = _invented(World(random.Random(HELD_OUT_SEED + 1), held_out=True))
    return list(islice((one for one in stream if one.reference is not None), count))


def _invented(world: World) -> Iterator[Example]:
    rng = world.rng
    while True:
        style = rng.choice(STYLES)
        kind = rng.choice(("e-mail", "e-mail", "thread", "notifications"))
        if kind == "notifications":
            notes = stack(world)
            text = "\n".join(note.line for note in notes)
            answer = stack_summary(notes, style)
        else:
            found = mail(world) if kind == "e-mail" else thread(world)
            text = found.text
            answer = found.one_line if style == "one line" else " ".join(found.sentences)
        reference = None
        if rng.random() < INJECTED:
            text, word = inject(text, rng, held_out=world.held_out)
            reference = {"word": word}
        yield Example(Request(text, style, kind), answer, OWN, OWN_LICENSE, reference)


def stack_summary(notes: list[Notification], style: str) -> str:
    """Urgent ones first. One line names up to three; the number of the others would be a new number."""
    order = sorted(notes, key=lambda note: not note.urgent)
    gists = [note.gist for note in order]
    if style == "one line":
        count = next(n for n in (3, 2, 1) if n == 1 or len(" ".join(gists[:n]).split()) <= 26)
        line = "; ".join(gists[:count]) + ("; and more" if len(gists) > count else "")
        return _capital(line) + "."
    cut = [gists[0:1], gists[1:3], gists[3:5]]
    return " ".join(_capital("; ".join(part)) + "." for part in cut if part)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def passes(answer: str, content: str, style: str) -> bool:
    """The rules for a summary that nobody checked: form, third person, no new names or numbers, no
    copying.
    """
    words = answer.split()
    if not fits_style(answer, style) or len(words) < 4 or len(answer) > 0.8 * len(content):
        return False
    if {word.strip(".,!?\"'").casefold() for word in words} & {
        "i",
        "i'm",
        "my",
        "me",
        "we",
        "our",
        "you",
        "your",
    }:
        return False
    return faithful(answer, content)


def _meetings(folder: Path, split: str) -> list[Example]:
    """Those whose human summary passes the same rules: many of QMSum's name what the stretch does not."""
    return [
        Example(Request(one.text, STYLES[1], "thread"), one.answer, "qmsum", LICENSES["qmsum"])
        for one in qmsum(folder, split, longest=LONGEST_MEETING)
        if passes(one.answer, one.text, STYLES[1])
    ]


def _written(options: RecipeOptions) -> Iterator[Example]:
    assert options.data is not None and options.writer is not None
    from pomona.adapters.tasks.registry import get

    rng = options.rng("written")
    texts = [text for text in mails(options.data) if 200 <= len(text) <= 3000]
    requests = [Request(text, style, "e-mail") for text in rng.sample(texts, len(texts)) for style in STYLES]
    licence = f"{LICENSES['email_zapier']}; answers by {options.writer.name}"
    for request, answer in options.writer.write(
        get("summarize"), requests, lambda text, asked: passes(text, asked.content, asked.style or "")
    ):
        yield Example(request, answer, "email_zapier", licence)
