"""`bnfold serve`."""

from __future__ import annotations

from typing import Any

import click

from bnfold.cli.options import example, provider

PORT, COUNT, SECONDS = click.IntRange(0, 65535), click.IntRange(min=1), click.FloatRange(min=0)
SHARE = click.FloatRange(0, 1)


@click.command(
    "serve",
    short_help="Answer requests over HTTP and gRPC.",
    epilog=example("bnfold serve folded.onnx --name digits"),
)
@click.argument("source", metavar="MODEL|REPOSITORY")
@click.option("--name", metavar="NAME", help="The model's name.  [default: the file's]")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Address to listen on.")
@click.option("--http-port", default=8000, type=PORT, show_default=True, metavar="PORT", help="For HTTP; 0: any free.")
@click.option("--grpc-port", default=8001, type=PORT, show_default=True, metavar="PORT", help="Port for gRPC.")
@click.option("--metrics-port", default=8002, type=PORT, show_default=True, metavar="PORT", help="Port for Prometheus.")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True, help="What runs it.")
@click.option("--min-replicas", type=COUNT, default=1, show_default=True, metavar="N", help="On Ray: at least so many.")
@click.option("--max-replicas", type=COUNT, metavar="N", help="On Ray: at most.  [default: by the cores]")
@provider
@click.option("--strict-device", is_flag=True, help="Refuse a model of which a node would run elsewhere.")
@click.option("--device-memory", type=COUNT, metavar="MIB", help="Limit of the device's arena.")
@click.option("--custom-ops", multiple=True, metavar="LIB", help="A library of operators, which is code; repeatable.")
@click.option("--threads", type=COUNT, metavar="N", help="Threads of one run.  [default: the usable cores]")
@click.option("--concurrency", type=COUNT, metavar="N", help="Runs at one time.  [default: the cores]")
@click.option("--max-batch", type=COUNT, metavar="ROWS", help="Join requests up to this.  [default: 1 on cpu, else 32]")
@click.option("--batch-delay", type=SECONDS, default=0.0, metavar="S", help="Wait so long for a batch to fill.")
@click.option("--queue", type=COUNT, default=64, show_default=True, metavar="N", help="Requests that wait, per model.")
@click.option("--timeout", type=SECONDS, default=30.0, show_default=True, metavar="S", help="How long a request waits.")
@click.option("--max-connections", type=COUNT, default=1024, show_default=True, metavar="N", help="At one time.")
@click.option("--max-body", type=COUNT, default=64, show_default=True, metavar="MIB", help="Largest request.")
@click.option("--max-pending", type=COUNT, default=512, show_default=True, metavar="MIB", help="All requests together.")
@click.option("--token-file", metavar="F", help="File with the bearer token that callers must send.")
@click.option("--tls-cert", metavar="F", help="Certificate chain, PEM.")
@click.option("--tls-key", metavar="F", help="Its key, PEM.")
@click.option("--shadow", metavar="ORIGINAL", help="The model before folding: sampled answers are held against its.")
@click.option("--shadow-rate", type=SHARE, default=0.01, show_default=True, metavar="P", help="Share of requests.")
@click.option("--roll-back/--no-roll-back", default=True, help="If it differs, go back.  [default: yes]")
@click.option("--drift-rate", type=SHARE, default=0.01, show_default=True, metavar="P", help="Share watched for drift.")
@click.option("--capture", metavar="DIR", help="Keep inputs that raised an alarm, as .npz files.")
@click.option("--drain", type=SECONDS, default=25.0, show_default=True, metavar="S", help="Time to finish at SIGTERM.")
@click.option("--supervise/--no-supervise", default=True, help="Restart the worker if it dies.  [default: supervise]")
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Log lines.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="What is logged; debug has every request.",
)
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
