"""`bnfold serve`."""

from __future__ import annotations

from typing import Any

import click

from bnfold.cli.options import Option, declared, example, provider

PORT, COUNT, SECONDS = click.IntRange(0, 65535), click.IntRange(min=1), click.FloatRange(min=0)
SHARE = click.FloatRange(0, 1)


_options = declared((
    Option("--name", metavar="NAME", help="The model's name.  [default: the file's]"),
    Option("--host", default="127.0.0.1", metavar="ADDRESS", help="Address to listen on."),
    Option("--http-port", default=8000, type=PORT, metavar="PORT", help="Port for HTTP; 0 is any that is free."),
    Option("--grpc-port", default=8001, type=PORT, metavar="PORT", help="Port for gRPC."),
    Option("--metrics-port", default=8002, type=PORT, metavar="PORT", help="Port for Prometheus."),
    Option("--engine", default="local", type=click.Choice(["local", "ray"]), metavar="NAME",
           help="local, or ray: as many processes and machines as the load asks for."),
    Option("--min-replicas", default=1, type=COUNT, metavar="N", help="With --engine ray: processes at least."),
    Option("--max-replicas", type=COUNT, metavar="N",
           help="With --engine ray: processes at most.  [default: by the cores]"),
    provider,
    Option("--strict-device", is_flag=True, help="Refuse a model of which a node would run elsewhere."),
    Option("--device-memory", type=COUNT, metavar="MIB", help="What a model may take of a GPU's memory."),
    Option("--custom-ops", multiple=True, metavar="FILE",
           help="A library of operators, which is code; may be repeated."),
    Option("--threads", type=COUNT, metavar="N", help="Threads of one run.  [default: the cores, 1 for short runs]"),
    Option("--concurrency", type=COUNT, metavar="N", help="Runs at one time.  [default: the cores]"),
    Option("--max-batch", type=COUNT, metavar="ROWS",
           help="Join requests up to so many rows.  [default: 1 on cpu, else 32]"),
    Option("--batch-delay", default=0.0, type=SECONDS, metavar="SECONDS", help="Wait so long for a batch to fill."),
    Option("--queue", default=64, type=COUNT, metavar="N", help="Requests of a model that may wait."),
    Option("--timeout", default=30.0, type=SECONDS, metavar="SECONDS", help="How long a request may wait."),
    Option("--max-connections", default=1024, type=COUNT, metavar="N", help="Connections at one time."),
    Option("--max-body", default=64, type=COUNT, metavar="MIB", help="Largest request."),
    Option("--max-pending", default=512, type=COUNT, metavar="MIB", help="All requests and answers together."),
    Option("--token-file", metavar="FILE", help="File with the bearer token that callers must send."),
    Option("--tls-cert", metavar="FILE", help="Certificate chain, PEM."),
    Option("--tls-key", metavar="FILE", help="Its key, PEM."),
    Option("--shadow", metavar="FILE", help="The model before folding: sampled answers are held against its."),
    Option("--shadow-rate", default=0.01, type=SHARE, metavar="X", help="Share of the requests held against it."),
    Option("--roll-back/--no-roll-back", default=True, help="If it differs, let the version before answer again."),
    Option("--drift-rate", default=0.01, type=SHARE, metavar="X", help="Share of the requests watched for drift."),
    Option("--capture", metavar="DIR", help="Keep inputs that raised an alarm, as .npz files."),
    Option("--drain", default=25.0, type=SECONDS, metavar="SECONDS", help="Time to answer what came before SIGTERM."),
    Option("--supervise/--no-supervise", default=True, help="Restart the worker if it dies."),
    Option("--log-format", default="text", type=click.Choice(["text", "json"]), metavar="NAME", help="text or json."),
    Option("--log-level", default="info", type=click.Choice(["debug", "info", "warning", "error"]), metavar="NAME",
           help="debug (every request), info, warning or error."),
))  # fmt: skip


@click.command(
    "serve",
    short_help="Answer requests over HTTP and gRPC.",
    epilog=example("bnfold serve folded.onnx --name digits", "bnfold serve repository"),
)
@click.argument("source", metavar="MODEL|REPOSITORY")
@_options
def command(
    source: str, max_body: int, max_pending: int, device_memory: int | None, custom_ops: tuple[str, ...],
    supervise: bool, **options: Any,
) -> int:  # fmt: skip
    """Serve a MODEL, or a REPOSITORY of folders NAME/VERSION/model.onnx, by the Open Inference Protocol v2."""
    from pathlib import Path

    from bnfold.serve.settings import MIB, Settings

    settings = Settings(
        Path(source),
        max_body=max_body * MIB,
        max_pending=max_pending * MIB,
        device_memory=None if device_memory is None else device_memory * MIB,
        custom_ops=tuple(str(Path(library).resolve()) for library in custom_ops),
        **options,
    )
    from bnfold.serve import supervise as process

    if settings.engine == "ray":
        return process.cluster(settings)
    return process.supervise(settings) if supervise else process.serve(settings)
