"""One result, or two held against each other, as an HTML file that needs nothing else.

    write_text(Path("report.html"), render(result))
    write_text(Path("report.html"), render(result, other))

No script, no network, no other file: a Content-Security-Policy admits the one style sheet by its hash and
nothing besides. What models and files say goes through `escape` and is text, whatever it holds.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from html import escape

from pomona.adapters.metrics import Interval
from pomona.evaluation.results import EvalResult, TaskResult, compare

EXAMPLES = 12  # answers that are shown of each task
SHOWN = 1200  # characters of an answer
WIDTH, LINE, LEFT = 640, 26, 230  # of the chart

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1f; --quiet: #5d5d66; --ground: #fbfbfd; --line: #d9d9e0;
  --ours: #2457c5; --theirs: #a33d12; --same: #e9e9ef; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececf1; --quiet: #a6a6b3; --ground: #17171b;
  --line: #3a3a44; --ours: #7da2ff; --theirs: #ff9e70; --same: #26262d; } }
body { margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: var(--ink); background: var(--ground);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.quiet { color: var(--quiet); } .ours { color: var(--ours); } .theirs { color: var(--theirs); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
caption { text-align: left; color: var(--quiet); padding-bottom: .4rem; }
.scroll { overflow-x: auto; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; } dt { color: var(--quiet); }
dd { margin: 0; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--same); padding: .6rem; }
summary { cursor: pointer; }
svg { max-width: 100%; height: auto; } svg text { fill: var(--ink); font-size: 13px; }
.axis { stroke: var(--line); } .bar { stroke-width: 3; } .bar-ours { stroke: var(--ours); }
.bar-theirs { stroke: var(--theirs); } .dot-ours { fill: var(--ours); } .dot-theirs { fill: var(--theirs); }
"""


def render(ours: EvalResult, theirs: EvalResult | None = None) -> str:
    """The whole page. PomonaError for two results without an item in common."""
    mark = "sha256-" + base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    title = f"{ours.suite}: {_name(ours)}" + ("" if theirs is None else f" against {_name(theirs)}")
    body = [f"<h1>{escape(title)}</h1>", *_facts(ours, "ours")]
    if theirs is None:
        rows = ours.rows()
        body += ["<h2>Values</h2>", _chart([(name, [("ours", one)]) for name, one in rows], 0.0, 1.0)]
        body += [_table(("task", "value", "95%", "items"), map(_row, rows), _average(ours))]
    else:
        body += _facts(theirs, "theirs")
        body += _comparison(ours, theirs)
    body += _examples(ours, theirs)
    policy = f"default-src 'none'; style-src '{mark}'; base-uri 'none'; form-action 'none'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def _name(result: EvalResult) -> str:
    return f"{result.model} with {result.adapter}" if result.adapter else result.model


def _average(result: EvalResult) -> str:
    return f"Average over tasks: {100 * result.average:.2f}%."


def _facts(result: EvalResult, side: str) -> list[str]:
    pairs = [
        ("model", _name(result)),
        ("fingerprint", result.fingerprint),
        ("adapter's hash", result.adapter_hash or "none"),
        ("chat template", "yes" if result.template else "as the task has it"),
        ("items of each task", "all" if result.limit is None else f"the first {result.limit:,}"),
        ("rows", "of the hub" if result.source == "hub" else "of local files"),
        ("lm-eval", result.lm_eval or "not used"),
        ("measured", f"{result.date}, {result.seconds:,.0f} s"),
    ]
    if result.samples > 1:
        pairs.append(("answers per item", f"{result.samples} at temperature {result.temperature:g}"))
    if result.max_new_tokens is not None:
        pairs.append(("longest answer", f"{result.max_new_tokens:,} tokens"))
    if result.left_out:
        pairs.append(("left out, without data", ", ".join(result.left_out)))
    lines = [f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs]
    return [f'<h2 class="{side}">{escape(_name(result))}</h2>', "<dl>", *lines, "</dl>"]


def _comparison(ours: EvalResult, theirs: EvalResult) -> list[str]:
    gains = compare(ours, theirs)
    a, b = dict(ours.rows()), dict(theirs.rows())
    chart = [(name, [("ours", a[name]), ("theirs", b[name])]) for name in gains]
    rows = [
        (name, f"{100 * a[name].value:.2f}%", f"{100 * b[name].value:.2f}%", *_gain(gain), f"{gain.rows:,}")
        for name, gain in gains.items()
    ]
    header = ("task", "first", "second", "difference, points", "95%", "shared items")
    words = "First minus second, on the items that both have; intervals draw the items in pairs."
    return ["<h2>Values</h2>", _chart(chart, 0.0, 1.0), _table(header, rows, words)]


def _gain(gain: Interval) -> tuple[str, str]:
    return f"{100 * gain.value:+.2f}", f"{100 * gain.low:+.2f} .. {100 * gain.high:+.2f}"


def _row(pair: tuple[str, Interval]) -> tuple[str, ...]:
    name, one = pair
    return name, f"{100 * one.value:.2f}%", f"{100 * one.low:.2f} .. {100 * one.high:.2f}", f"{one.rows:,}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], words: str) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return (
        f'<div class="scroll"><table><caption>{escape(words)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>\n{body}</tbody></table></div>"
    )


def _chart(rows: Sequence[tuple[str, list[tuple[str, Interval]]]], low: float, high: float) -> str:
    """Values as dots on their intervals; the axis goes from 0 to 100%."""
    height = LINE * len(rows) + 34

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - 20) * (min(max(value, low), high) - low) / (high - low)

    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(f'<line class="axis" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="4" y2="{height - 26}"/>')
        words = f"{100 * tick:.0f}%"
        parts.append(f'<text x="{x(tick):.1f}" y="{height - 8}" text-anchor="middle">{words}</text>')
    for number, (name, values) in enumerate(rows):
        middle = LINE * number + LINE / 2 + 4
        short = name if len(name) <= 32 else f"{name[:31]}…"
        parts.append(f'<text x="{LEFT - 10}" y="{middle + 4:.1f}" text-anchor="end">{escape(short)}</text>')
        for place, (side, one) in enumerate(values):
            y = middle + 7 * (place - (len(values) - 1) / 2)
            parts.append(
                f'<line class="bar bar-{side}" x1="{x(one.low):.1f}" x2="{x(one.high):.1f}" '
                f'y1="{y:.1f}" y2="{y:.1f}"/>'
                f'<circle class="dot-{side}" cx="{x(one.value):.1f}" cy="{y:.1f}" r="4"/>'
            )
    label = "Values of the tasks with their intervals; the table below has the figures"
    body = "\n".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">\n{body}\n</svg>'


def _examples(ours: EvalResult, theirs: EvalResult | None) -> list[str]:
    """Some answers of each task; of two results those whose scores differ."""
    others = {} if theirs is None else {task.task: task for task in theirs.tasks if task.main}
    lines: list[str] = []
    for task in ours.tasks:
        other = others.get(task.task)
        if not task.answers or (theirs is not None and other is None):
            continue
        keys = [key for key in task.answers if key in task.items and _differs(task, other, key)][:EXAMPLES]
        if keys:
            lines.append(f"<h2>{escape(task.task)}: answers</h2>")
        for key in keys:
            lines.append(f"<details><summary>{escape(key)}: {_scores(task, other, key)}</summary>")
            lines.append(f'<pre class="ours">{escape(task.answers[key][:SHOWN])}</pre>')
            if other is not None:
                lines.append(f'<pre class="theirs">{escape(other.answers.get(key, "")[:SHOWN])}</pre>')
            lines.append("</details>")
    if lines and theirs is not None:
        lines.insert(0, '<p class="quiet">Answers whose scores differ; the first result above.</p>')
    return lines


def _differs(task: TaskResult, other: TaskResult | None, key: str) -> bool:
    return other is None or (key in other.items and other.items[key] != task.items[key])


def _scores(task: TaskResult, other: TaskResult | None, key: str) -> str:
    score = f"{task.items[key]:.2f}"
    return score if other is None else f"{score} against {other.items[key]:.2f}"
