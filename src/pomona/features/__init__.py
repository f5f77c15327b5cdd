"""Language features for products: summaries, corrections, tones, replies, priorities, data.

    from pomona import features
    print(features.proofread("I has a apple.").text)

Every function has a twin of the same name in `features.aio` for asyncio. Importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pomona.features import aio
    from pomona.features.results import (
        Corrected,
        Extracted,
        Origin,
        Points,
        Priorities,
        Rewritten,
        Suggestions,
        Summary,
    )
    from pomona.features.router import Offer, Policy, Router
    from pomona.features.writing import (
        extract,
        key_points,
        prioritize,
        proofread,
        replies,
        rewrite,
        summarize,
    )

_PLACES = {
    "Corrected": "results",
    "Extracted": "results",
    "Offer": "router",
    "Origin": "results",
    "Points": "results",
    "Policy": "router",
    "Priorities": "results",
    "Rewritten": "results",
    "Router": "router",
    "Suggestions": "results",
    "Summary": "results",
    "extract": "writing",
    "key_points": "writing",
    "prioritize": "writing",
    "proofread": "writing",
    "replies": "writing",
    "rewrite": "writing",
    "summarize": "writing",
}

__all__ = [
    "Corrected",
    "Extracted",
    "Offer",
    "Origin",
    "Points",
    "Policy",
    "Priorities",
    "Rewritten",
    "Router",
    "Suggestions",
    "Summary",
    "aio",
    "extract",
    "key_points",
    "prioritize",
    "proofread",
    "replies",
    "rewrite",
    "summarize",
]


def __getattr__(name: str) -> Any:
    if name == "aio":
        return import_module("pomona.features.aio")
    if name not in _PLACES:
        raise AttributeError(f"module 'pomona.features' has no attribute {name!r}")
    return getattr(import_module(f"pomona.features.{_PLACES[name]}"), name)
