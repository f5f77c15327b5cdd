"""`pomona align ipo`: like DPO, with a squared loss that no certain preference drives to infinity.

    pomona align ipo smollm2-135m preferences.jsonl --start adapters/sft --out adapters/ipo

The work is done in pomona.posttraining.dpo.
"""

from __future__ import annotations

from pomona.cli.align_dpo import preference_command
from pomona.cli.common import examples, new_app

app = new_app()
ipo = app.command(
    "ipo",
    epilog=examples(
        "pomona align ipo smollm2-135m preferences.jsonl --start adapters/sft --out adapters/ipo",
        "pomona align ipo smollm2-135m-4bit dpo_pairs --out adapters/ipo --minutes 30",
    ),
)(
    preference_command(
        "ipo",
        "Train an adapter by IPO: the gap between the responses is led to 1 / (2 beta), and no further.",
    )
)
