"""`pomona safety`: what a model must not be used for, tried and measured.

    pomona safety redteam smollm2-135m-4bit --set xstest --out report.json
    pomona safety review list

Each command is a file of its own, `cli/safety_NAME.py`; a new one is one line in COMMANDS. The work is done
in pomona.safety.
"""

from __future__ import annotations

from types import ModuleType

import typer

from pomona.cli import safety_data, safety_memorisation, safety_redteam, safety_review
from pomona.cli.common import examples, new_app

# The order is that of the help page. None: an app of one command, which brings its own name.
COMMANDS: tuple[tuple[str | None, ModuleType], ...] = (
    (None, safety_redteam),
    ("review", safety_review),
    ("data", safety_data),
    ("memorisation", safety_memorisation),
)

app = new_app()


@app.callback(
    invoke_without_command=True,
    epilog=examples(
        "pomona safety redteam smollm2-135m-4bit --set xstest --json", "pomona safety review --help"
    ),
)
def safety(context: typer.Context) -> None:
    """Red team, review queue, safety data and memorisation of a model; see docs/safety.md for the order."""
    if context.invoked_subcommand is None:
        print(context.get_help())


for _name, _module in COMMANDS:
    app.add_typer(_module.app, name=_name)
