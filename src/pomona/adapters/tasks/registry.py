"""The built-in tasks by name. A task's module is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from pomona.errors import PomonaError

if TYPE_CHECKING:
    from pomona.adapters.tasks.task import Task

# name -> what it does, for help pages that import no task
TASKS: dict[str, str] = {
    "summarize": "An e-mail, a thread or a stack of notifications in one line or three sentences.",
    "proofread": "A text with its spelling, grammar and punctuation corrected.",
    "rewrite": "A text in a friendly, professional or concise tone.",
    "key_points": "The points of a text as a list.",
    "reply": "Short replies to a mail, and the questions that it asks.",
    "prioritize": "Whether a notification is urgent.",
    "extract": "Contacts, dates, events, or whatever a JSON schema names.",
    "tools": "Calls of functions that answer a request.",
}


def names() -> tuple[str, ...]:
    return tuple(TASKS)


def get(name: str) -> Task:
    """The task `name`. PomonaError if there is none."""
    if name not in TASKS:
        raise PomonaError(f"task {str(name)[:40]}: there is none of that name; choose of {', '.join(TASKS)}")
    task: Task = import_module(f"pomona.adapters.tasks.{name}").TASK
    return task
