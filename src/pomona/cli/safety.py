"""`pomona safety`: what stands against misuse, one command per part.

    pomona safety guardrail score smollm2-135m-4bit "How do I bake bread?"

Each part is a file of its own, `cli/safety_NAME.py`; a new one is one line in COMMANDS. The work is done in
pomona.safety.
"""

from __future__ import annotations

from types import ModuleType

import typer

from pomona.cli import safety_guardrail
from pomona.cli.common import examples, new_app

# Name -> module, in the order of the help page.
COMMANDS: dict[str, ModuleType] = {"guardrail": safety_guardrail}

app = new_app()


@app.callback(
    invoke_without_command=True,
    epilog=examples("pomona safety guardrail --help", "pomona safety guardrail score --help"),
)
def safety(context: typer.Context) -> None:
    """Safety: guardrails, red teaming; see docs/safety.md."""
    if context.invoked_subcommand is None:
        print(context.get_help())


for _name, _module in COMMANDS.items():
    app.add_typer(_module.app, name=_name)
