"""The far end of isolated.py: calls one Python function for every line of standard input.

    python -m pomona.posttraining.isolated_worker package.module.function

A line in is a JSON list of arguments; a line out is {"value": number} or {"error": text}. What the function
prints goes to standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys

MEMORY_BYTES = 8 << 30  # of address space: a function may load torch


def main(dotted: str) -> int:
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    sys.path.insert(0, os.getcwd())
    try:
        module, _, name = dotted.rpartition(".")
        function = getattr(importlib.import_module(module), name)
        ready: dict[str, object] = {"value": 0.0}
    except Exception as error:
        ready = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(ready), file=out, flush=True)
    if "error" in ready:
        return 1
    for line in sys.stdin:
        try:
            answer: dict[str, object] = {"value": float(function(*json.loads(line)))}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        print(json.dumps(answer), file=out, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
