"""Everything that can be set about a server, with the defaults of `bnfold serve`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIB = 1 << 20


@dataclass(frozen=True)
class Settings:
    """What is served, where, how, and within which limits. Sizes are in bytes, times in seconds."""

    source: Path
    name: str | None = None
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    engine: str = "local"
    min_replicas: int = 1
    max_replicas: int | None = None
    # Running
    provider: str = "cpu"
    strict_device: bool = False
    threads: int | None = None
    concurrency: int | None = None
    max_batch: int | None = None
    batch_delay: float = 0.0
    queue: int = 64
    timeout: float = 30.0
    device_memory: int | None = None
    custom_ops: tuple[str, ...] = ()
    # Security
    token_file: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    max_body: int = 64 * MIB
    max_pending: int = 512 * MIB
    max_connections: int = 1024
    # Watching: shares of the requests
    shadow: str | None = None
    shadow_rate: float = 0.01
    roll_back: bool = True
    drift_rate: float = 0.01
    capture: str | None = None
    # Going down
    drain: float = 25.0
    supervise: bool = True
    log_format: str = "text"
    log_level: str = "info"


def parse_settings(values: Mapping[str, Any]) -> Settings:
    """The settings that `dataclasses.asdict` and JSON made of some."""
    tuples = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
    return Settings(**{**values, **tuples, "source": Path(values["source"])})
