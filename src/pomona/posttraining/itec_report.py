"""The page of a round of iTeC: one HTML file without scripts, with everything in it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from pomona.adapters.metrics import bootstrap, mean
from pomona.posttraining.committee import Answer, Member, best_per_prompt, mean_reward
from pomona.posttraining.prompts import Prompt

EXAMPLES = 12
REWARD = mean("reward", lambda value, _: value)
MAX_SHOWN = 1200  # characters of a text

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --bar: #4a7fb5; --best: #2e8b57; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; }
th, td { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number { white-space: nowrap; }
.bars { min-width: 6rem; width: 9rem; }
.bar { background: var(--bar); height: .7rem; border-radius: .2rem; min-width: 1px; }
.kept { color: var(--best); font-weight: 600; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .2rem 0; font: inherit; }
details { border: 1px solid var(--line); border-radius: .4rem; padding: .4rem .8rem; margin: .5rem 0; }
"""


def round_page(
    number: int,
    prompts: Sequence[Prompt],
    answers: Sequence[Answer],
    measured: Sequence[Member],
    by_prompt: Mapping[str, Sequence[float | None]],
    committee: Sequence[str],
    trained: Sequence[Mapping[str, Any]],
    reward: str,
    problems: Mapping[str, int],
) -> str:
    """answers: of the round's committee, with rewards. measured: old and new members with their held-out
    reward; by_prompt: that of each held-out prompt, by the member's name. committee: names of the next one.
    trained: name and note of every technique."""
    best = best_per_prompt(answers)
    mean_best = _number(mean_reward(answer.reward for answer in best.values())) or "unknown"
    mean_all = _number(mean_reward(answer.reward for answer in answers)) or "unknown"
    parts = [
        f"<h1>Round {number}</h1>",
        f"<p>{len(prompts)} prompts, {len(answers)} responses, judged by <code>{escape(reward)}</code>. "
        f"Mean reward of all responses {mean_all}, of the best per prompt {mean_best}.</p>",
        _problems(problems),
        "<h2>Members</h2>",
        _members(answers, best, measured, by_prompt, set(committee)),
        "<h2>Training</h2>",
        _table(("member", "what came of it"), [(one["name"], one["note"]) for one in trained]),
        "<h2>Examples</h2>",
        *_examples(prompts, answers, best),
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>iTeC, round {number}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>'
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _members(
    answers: Sequence[Answer],
    best: Mapping[int, Answer],
    measured: Sequence[Member],
    by_prompt: Mapping[str, Sequence[float | None]],
    kept: set[str],
) -> str:
    picks = Counter(answer.member for answer in best.values())
    top = max((member.reward or 0 for member in measured), default=0) or 1
    rows = []
    for member in measured:
        own = [answer.reward for answer in answers if answer.member == member.name]
        value = member.reward
        width = 0 if value is None else max(0.0, min(value / top, 1.0)) * 100
        mark = '<span class="kept">yes</span>' if member.name in kept else "no"
        rows.append(
            f"<tr><td>{escape(member.name)}</td><td>{escape(member.technique)}</td>"
            f'<td class="number">{_number(value)}</td>'
            f'<td class="number">{_interval(by_prompt[member.name])}</td>'
            f'<td class="bars"><div class="bar" style="width:{width:.0f}%"></div></td>'
            f'<td class="number">{_number(mean_reward(own)) if own else "new"}</td>'
            f'<td class="number">{picks[member.name] if own else ""}</td><td>{mark}</td></tr>'
        )
    head = (
        '<tr><th>member</th><th>technique</th><th class="number">held-out reward</th>'
        '<th class="number">95%</th><th></th>'
        '<th class="number">reward in the round</th><th class="number">picks</th><th>next committee</th></tr>'
    )
    return f"<table>{head}{''.join(rows)}</table>"


def _examples(prompts: Sequence[Prompt], answers: Sequence[Answer], best: Mapping[int, Answer]) -> list[str]:
    found = []
    for number in sorted(best)[:EXAMPLES]:
        own = sorted(
            (answer for answer in answers if answer.prompt == number and math.isfinite(answer.reward)),
            key=lambda answer: -answer.reward,
        )
        shown = list(dict.fromkeys([own[0], own[-1]]))
        rows = [(f"{answer.member} ({answer.reward:.3f})", answer.text[:MAX_SHOWN]) for answer in shown]
        asked = prompts[number].messages[-1]["content"][:MAX_SHOWN]
        found.append(
            f"<details><summary>{escape(asked)}</summary>{_table(('member', 'response'), rows)}</details>"
        )
    return found


def _problems(problems: Mapping[str, int]) -> str:
    if not problems:
        return ""
    told = ", ".join(f"{count} {escape(kind)}" for kind, count in sorted(problems.items()))
    return f"<p>Responses with a problem: {told}.</p>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        f"<tr>{''.join(f'<td><pre>{escape(str(cell))}</pre></td>' for cell in row)}</tr>" for row in rows
    )
    return f"<table><tr>{cells}</tr>{body}</table>"


def _interval(values: Sequence[float | None]) -> str:
    """Of the mean, by resampling prompts."""
    counts = [(value, 1.0) for value in values if value is not None]
    if not counts:
        return ""
    found = bootstrap(REWARD, counts)
    return f"{found.low:.3f} .. {found.high:.3f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
