"""rewrite: messages of one intent in four tones (blunt, friendly, professional, concise), written by hand.

A row takes one or two intents in one tone as the content and the same ones in another tone as the answer. For
`concise` the content may also be the concise text with padding around it. Every fourth intent is held out.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from pomona.adapters.recipes.injections import inject
from pomona.adapters.recipes.names import CITIES, World
from pomona.adapters.recipes.rows import HELD_OUT_SEED, OWN, OWN_LICENSE, RecipeOptions
from pomona.adapters.tasks.task import Example, Request

HELD_OUT_ROWS = 150
INJECTED = 0.05
TONES = ("blunt", "friendly", "professional", "concise")

# blunt | friendly | professional | concise
_INTENTS = """
Send me the {doc} by {day}.|Hi! Could you send me the {doc} by {day}? That would be a great help!|Could you please send me the {doc} by {day}?|Please send the {doc} by {day}.
I can't come on {day}.|I'm so sorry, but I can't make it on {day}. I hope we find another time soon!|Unfortunately, I am not able to attend on {day}.|I cannot come on {day}.
You forgot to pay {m}.|Just a little reminder: the {m} hasn't reached me yet. No worries at all!|I would like to remind you that the payment of {m} is still outstanding.|{m} is still unpaid.
The {doc} is full of mistakes, fix it.|Thanks for the {doc}! I found a few little mistakes, could you have another look?|The {doc} contains several errors. Could you please correct them?|Please correct the errors in the {doc}.
Where is the {doc}? I've been waiting since {day}.|Hey, I was wondering how the {doc} is coming along? I've been looking forward to it since {day}!|I have been expecting the {doc} since {day}. Could you please let me know its status?|What is the status of the {doc}, expected on {day}?
Call {a} before {t}.|Would you mind giving {a} a quick call before {t}? Thanks a lot!|Please contact {a} by telephone before {t}.|Please call {a} before {t}.
That's a bad idea.|Thanks for sharing this idea! I'm not quite sure it will work, though.|Thank you for the suggestion. I have some concerns about it.|I have doubts about this.
The meeting with {f} is moved to {t}.|Quick heads-up: our meeting with {f} is now at {t}. See you there!|Please note that the meeting with {f} has been rescheduled to {t}.|The meeting with {f} is now at {t}.
I don't get what you want.|Sorry, I'm not sure I understood you. Could you tell me a bit more?|I am afraid I did not fully understand your request. Could you please clarify it?|Please clarify your request.
Pick me up in {c} at {t}.|Could you be so kind and pick me up in {c} at {t}? You're the best!|Would it be possible to pick me up in {c} at {t}?|Please pick me up in {c} at {t}.
Your offer of {m} is too high.|Thank you so much for the offer! {m} is a bit more than we hoped for.|Thank you for your offer. Unfortunately, {m} exceeds our budget.|{m} is above our budget.
I need {d2} off.|Hi! Would it be alright if I took {d2} off? Thank you!|I would like to request leave on {d2}.|I request leave on {d2}.
Stop sending me mails about {f}.|Thanks for keeping me posted about {f}! I think I have all I need now, so no more mails, please.|I kindly ask you to remove me from further correspondence about {f}.|Please send me no more mails about {f}.
{a} will do it, not me.|{a} is happy to take this over from me!|{a} will be taking over this matter from me.|{a} will take this over.
The train to {c} is late, start without me.|My train to {c} is running late, sorry! Please start without me, I'll join you soon.|My train to {c} is delayed. Please begin without me.|Train to {c} delayed; please start without me.
Who broke the printer?|Does anybody happen to know what happened to our printer?|Could somebody please inform me about what happened to the printer?|What happened to the printer?
Tell {a} that {f} said no.|Could you let {a} know that {f} sadly can't do it?|Please inform {a} that {f} has declined.|Please tell {a} that {f} declined.
I want my {m} back.|Hello! Could you help me to get my {m} back? Thank you so much!|I would like to request a refund of {m}.|Please refund {m}.
Come to {c} on {day}.|We'd be so happy to see you in {c} on {day}!|We would like to invite you to {c} on {day}.|Please come to {c} on {day}.
Your answer took too long.|Thanks for getting back to me! Next time a quicker answer would be lovely.|I would appreciate a more prompt response in the future.|Please answer sooner next time.
We are out of paper, order some.|We've run out of paper, could you order some? Thanks a million!|Our paper supply is exhausted. Could you please place an order?|Please order paper.
I finished the {doc}.|Good news: the {doc} is finished! I hope you like it.|I am pleased to inform you that the {doc} is complete.|The {doc} is finished.
You're wrong, it's {t}, not {t2}.|I think there's a tiny mix-up: it's at {t}, not {t2}!|Please note that the correct time is {t} rather than {t2}.|The time is {t}, not {t2}.
Don't park in front of {f}.|Could you please park somewhere else than in front of {f}? Thank you for your help!|Please refrain from parking in front of {f}.|Please do not park in front of {f}.
"""
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


def intents(held_out: bool) -> list[list[str]]:
    rows = [line.split("|") for line in _INTENTS.strip().splitlines()]
    return [row for i, row in enumerate(rows) if (i % 4 == 3) == held_out]


def _stream(world: World) -> Iterator[Example]:
    rng = world.rng
    while True:
        chosen = rng.sample(intents(world.held_out), rng.choice((1, 1, 2)))
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
            text, answer = f"{text}\n{extra}", f"{answer}\n{extra}"  # rewritten text keeps it, and obeys it not
        yield Example(Request(text, target), answer, OWN, OWN_LICENSE)


def _said(chosen: list[list[str]], tone: int, slots: dict[str, str]) -> str:
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
        "c": world.pick(CITIES),
    }
