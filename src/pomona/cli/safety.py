"""`pomona safety`: what stands against misuse, tried and measured, one command per part.

    pomona safety redteam smollm2-135m-4bit --set xstest --out report.json
    pomona safety guardrail score smollm2-135m-4bit "How do I bake bread?"

Each part is a file of its own, `cli/safety_NAME.py`; a new one is one line in COMMANDS. The work is done in
pomona.safety.
"""

from __future__ import annotations

from types import ModuleType

import typer

from pomona.cli import (
    safety_data,
    safety_guardrail,
    safety_memorisation,
    safety_redteam,
    safety_review,
)
from pomona.cli.common import examples, new_app

# In the order of the help page. None: an app of one command, which brings its own name.
COMMANDS: tuple[tuple[str | None, ModuleType], ...] = (
    ("guardrail", safety_guardrail),
    (None, safety_redteam),
    ("review", safety_review),
    ("data", safety_data),
    ("memorisation", safety_memorisation),
)

app = new_app()


@app.callback(
    invoke_without_command=True,
    epilog=examples(
        "pomona safety redteam smollm2-135m-4bit --set xstest --json", "pomona safety guardrail --help"
    ),
)
def safety(context: typer.Context) -> None:
    """Guardrails, red team, review queue, safety data, memorisation; see docs/safety.md for the order."""
    if context.invoked_subcommand is None:
        print(context.get_help())


for _name, _module in COMMANDS:
    app.add_typer(_module.app, name=_name)
