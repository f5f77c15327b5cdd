"""The funnel as one HTML file that needs nothing else: no script, no network, foreign words escaped."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from html import escape

from pomona.data.pipeline.funnel import Funnel, FunnelRow, Sample

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --dim: #60656c; --line: #d9dce1; --page: #fbfcfd;
  --kept: #3b7dd8; --gone: #e7c3b4; }
@media (prefers-color-scheme: dark) { :root { --ink: #eceef1; --dim: #9ba1a8; --line: #363a40;
  --page: #17191c; --kept: #5a9bf0; --gone: #6b4a3c; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 0; }
p.about { color: var(--dim); margin: 0.2rem 0 1.5rem; }
section { border-top: 1px solid var(--line); padding: 0.7rem 0; }
h2 { font-size: 1rem; margin: 0; display: inline-block; min-width: 14rem; }
.figures { color: var(--dim); font-variant-numeric: tabular-nums; }
svg { display: block; width: 100%; height: 0.9rem; margin: 0.4rem 0; }
rect.kept { fill: var(--kept); } rect.gone { fill: var(--gone); }
ul { margin: 0.2rem 0; padding: 0; list-style: none; }
li { display: inline-block; margin-right: 1.2rem; color: var(--dim); }
b { color: var(--ink); font-weight: 600; font-variant-numeric: tabular-nums; }
details { margin-top: 0.3rem; } summary { cursor: pointer; color: var(--dim); }
blockquote { margin: 0.4rem 0; padding-left: 0.8rem; border-left: 3px solid var(--line);
  white-space: pre-wrap; overflow-wrap: anywhere; }
cite { color: var(--dim); font-style: normal; font-size: 0.85rem; }
"""


def render_funnel(funnel: Funnel, samples: Mapping[str, Sequence[Sample]]) -> str:
    """The whole page. samples: of each step's label some of what it removed."""
    sum_ = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{sum_}'"
    most = max((row.documents_in for row in funnel.rows), default=0) or 1
    state = "" if funnel.complete else f", so far: {funnel.finished} of {funnel.tasks} tasks are done"
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width">',
        f"<title>{escape(funnel.name)}: data funnel</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(funnel.name)}</h1>",
        f'<p class="about">{funnel.files:,} files, {funnel.bytes / 1e6:,.1f} MB, '
        f"recipe {escape(funnel.fingerprint[:12])}{state}</p>",
        *(_section(row, most, samples.get(row.label, ())) for row in funnel.rows),
        "</body></html>\n",
    ]
    return "".join(parts)


def _section(row: FunnelRow, most: int, samples: Sequence[Sample]) -> str:
    kept, came = 100 * row.documents_out / most, 100 * row.documents_in / most
    return (
        f'<section><h2>{escape(row.label)}</h2><span class="figures">{row.documents_in:,} → '
        f"<b>{row.documents_out:,}</b> documents, {row.characters_out / 1e6:,.2f} million characters, "
        f"{row.seconds:,.1f} s</span>"
        f'<svg role="img" aria-label="{kept:.1f}% of all documents are left">'
        f'<rect class="gone" width="{came:.2f}%" height="100%"/>'
        f'<rect class="kept" width="{kept:.2f}%" height="100%"/></svg>'
        f"{_list('removed', row.removed)}{_list('changed', row.changed)}{_samples(samples)}</section>"
    )


def _list(title: str, counts: Mapping[str, int]) -> str:
    if not counts:
        return ""
    items = "".join(f"<li>{escape(key)} <b>{count:,}</b></li>" for key, count in counts.items())
    return f'<ul aria-label="{title}"><li>{title}:</li>{items}</ul>'


def _samples(samples: Sequence[Sample]) -> str:
    if not samples:
        return ""
    quotes = "".join(
        f"<blockquote>{escape(one.text)}<br><cite>{escape(one.reason)} · {escape(one.id)}</cite></blockquote>"
        for one in samples
    )
    return f"<details><summary>some of what was removed</summary>{quotes}</details>"
