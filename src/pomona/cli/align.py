"""`pomona align`: post-training, one command per technique.

    pomona align sft smollm2-135m chats.jsonl --name sft
    pomona align reward smollm2-135m preferences.jsonl --out reward-model

Each command is a file of its own, `cli/align_NAME.py`, with a Typer app of one command; a new one is one line
in COMMANDS. The work is done in pomona.posttraining.
"""

from __future__ import annotations

from types import ModuleType

import typer

from pomona.cli import (
    align_dpo,
    align_ipo,
    align_itec,
    align_mdloo,
    align_mixture,
    align_prompts,
    align_reward,
    align_sft,
    align_synth,
)
from pomona.cli.common import examples, new_app

# The order is that of the help page.
COMMANDS: tuple[ModuleType, ...] = (
    align_sft,
    align_reward,
    align_dpo,
    align_ipo,
    align_prompts,
    align_mdloo,
    align_itec,
    align_mixture,
    align_synth,
)

app = new_app()


@app.callback(
    invoke_without_command=True,
    epilog=examples("pomona align sft smollm2-135m-4bit chat.jsonl --json", "pomona align reward --help"),
)
def align(context: typer.Context) -> None:
    """Align a model: demonstrations, preferences, rewards; see docs/align.md for the order."""
    if context.invoked_subcommand is None:
        print(context.get_help())


for _module in COMMANDS:
    app.add_typer(_module.app)
