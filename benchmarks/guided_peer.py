"""llama.cpp's grammars, timed in its own environment; `benchmarks.guided` runs it.

    .peer/bin/python -m benchmarks.guided_peer MODEL.gguf THREADS < request.json

The request names schemas, a question, tokens and rounds; the last line of the output gives milliseconds per
token for every schema, free and with its grammar, in turns. This file must import nothing of pomona.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


def per_token(model: Any, question: str, tokens: int, grammar: Any) -> float:
    """Milliseconds per token after the first."""
    messages = [{"role": "user", "content": question}]
    pieces = model.create_chat_completion(
        messages, max_tokens=tokens, temperature=0.0, grammar=grammar, stream=True
    )
    times = [time.perf_counter() for _ in pieces]
    # The first piece names the role, the last one the reason of the end.
    return 1000 * (times[-2] - times[1]) / max(len(times) - 3, 1)


def main() -> int:
    from llama_cpp import Llama, LlamaGrammar

    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever llama.cpp prints must not land among the results
    threads = int(sys.argv[2])
    request = json.load(sys.stdin)
    model = Llama(
        sys.argv[1], n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False, flash_attn=True
    )
    found: dict[str, dict[str, list[float]]] = {}
    for name, schema in request["schemas"].items():
        try:
            grammar = LlamaGrammar.from_json_schema(json.dumps(schema), verbose=False)
            per_token(model, request["question"], 8, grammar)
        except Exception:  # whatever it cannot do is left out of the comparison
            continue
        taken: dict[str, list[float]] = {"free": [], "grammar": []}
        for _ in range(request["rounds"]):
            for way, rule in (("free", None), ("grammar", grammar)):
                taken[way].append(per_token(model, request["question"], request["tokens"], rule))
        found[name] = taken
    output.write(json.dumps(found) + "\n")
    output.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
