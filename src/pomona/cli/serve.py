"""`pomona serve`: a model behind OpenAI's HTTP interface, on this machine.

    pomona serve smollm2-135m-4bit
    POMONA_API_KEY=... pomona serve --host 0.0.0.0 --config server.yaml

Log lines (JSON) go to standard error, the address to standard output. SIGTERM lets running requests end.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pomona.cli.common import JsonOption, ThreadsOption, examples, new_app, parse_bytes, print_json

app = new_app()


@app.command(
    epilog=examples(
        "pomona serve",
        "pomona serve smollm2-135m-4bit --port 9000 --threads 4",
        "POMONA_API_KEY=$(openssl rand -hex 24) pomona serve --host 0.0.0.0",
        "pomona serve --guardrail guardrail",
        "pomona serve --config server.yaml",
    )
)
def serve(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A model in the cache, or a directory.",
            show_default="smollm2-135m-4bit",
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            "--host",
            help="Address to bind; any but a loopback address needs an API key.",
            show_default="127.0.0.1",
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="0: one that is free.", show_default="8000")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="YAML or TOML with the keys of docs/serve.md."),
    ] = None,
    allowed_hosts: Annotated[
        list[str] | None,
        typer.Option(
            "--allowed-host", metavar="NAME", help="A name that clients call the server by; repeatable."
        ),
    ] = None,
    max_running: Annotated[
        int | None, typer.Option("--max-running", min=1, help="Requests in one step.", show_default="64")
    ] = None,
    max_waiting: Annotated[
        int | None,
        typer.Option("--max-waiting", min=1, help="Requests in the queue; more get 429.", show_default="256"),
    ] = None,
    adapter_budget: Annotated[
        str | None,
        typer.Option("--adapter-budget", metavar="SIZE", help="Memory for adapters.", show_default="256MiB"),
    ] = None,
    adapter_store: Annotated[
        Path | None,
        typer.Option("--adapter-store", metavar="DIR", help="Adapters may be loaded from below it."),
    ] = None,
    guardrail: Annotated[
        str | None,
        typer.Option(
            "--guardrail", metavar="NAME", help="Judge inputs and outputs by this adapter of the model."
        ),
    ] = None,
    guardrail_policy: Annotated[
        Path | None,
        typer.Option("--guardrail-policy", metavar="FILE", help="YAML of docs/guardrail.md."),
    ] = None,
    log_level: Annotated[
        str | None,
        typer.Option("--log-level", help="debug, info, warning or error.", show_default="info"),
    ] = None,
    threads: ThreadsOption = None,
    isa: Annotated[str | None, typer.Option("--isa", help="Kernels.", show_default="auto")] = None,
    as_json: JsonOption = False,
) -> None:
    """Serve MODEL to OpenAI's clients until a signal ends it.

    The API key is read from POMONA_API_KEY, or from the configuration file.
    """
    from pomona.serving.settings import load_settings

    budget = None if adapter_budget is None else parse_bytes("--adapter-budget", adapter_budget)
    settings = load_settings(
        config,
        {
            "model": model,
            "host": host,
            "port": port,
            "allowed_hosts": tuple(allowed_hosts) if allowed_hosts else None,
            "max_running": max_running,
            "max_waiting": max_waiting,
            "adapter_budget_bytes": budget,
            "adapter_store": adapter_store,
            "guardrail": guardrail,
            "guardrail_policy": guardrail_policy,
            "log_level": log_level,
            "threads": threads,
            "isa": isa,
        },
    )

    from pomona.serving.server import serve as run

    def ready(address: str, model_id: str) -> None:
        if as_json:
            print_json({"address": address, "base_url": f"{address}/v1", "model": model_id})
        else:
            sys.stdout.write(f"{model_id} on {address} (OpenAI's interface: {address}/v1)\n")
            sys.stdout.flush()

    run(settings, ready)
