"""`--engine ray`: replicas of the core on Ray Serve, as many as the load asks for, on one machine or on many.

HTTP is Ray's: its proxy, or HAProxy with RAY_SERVE_ENABLE_HA_PROXY=1, hands requests to the replicas' own application.
gRPC and the metrics are served by this process, which Ray's gRPC proxy could not do on one address, with TLS, a token
and limits; it hands the messages as they are to the replicas.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from ray import serve
from ray.exceptions import RayActorError, RayError, TaskCancelledError
from ray.serve.config import AutoscalingConfig
from ray.serve.exceptions import RayServeException
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bnfold import __version__
from bnfold.errors import BnfoldError, ModelError, UsageError
from bnfold.providers import named
from bnfold.serve import listeners, log
from bnfold.serve import metrics as exposition
from bnfold.serve.app import stopped
from bnfold.serve.errors import Refused, failed, overloaded
from bnfold.serve.machine import cores
from bnfold.serve.memory import Budget, Trimmer, trim
from bnfold.serve.replica import APPLICATION, DEPLOYMENT, Replica, ask
from bnfold.serve.replies import refusal
from bnfold.serve.repository import repository
from bnfold.serve.security import authorize, read_token
from bnfold.serve.settings import Settings
from bnfold.serve.sockets import bind, free_port

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_STORE = 128 << 20  # Ray's object store, which tensors of ordinary requests never see
_ASK_S = 5.0
_UPSCALE_S = 5.0  # of more load than the replicas can bear, before another is started


class ClusterError(BnfoldError):
    """A Ray cluster that can't be joined or does not run what it is given."""


# Ray's own lines, which are not ours to repeat.
_QUIET = {"log_level": "ERROR", "enable_access_log": False}
# What is not set otherwise in the environment of Ray's processes.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nobody asked for reports to Ray's makers
    "RAY_DEDUP_LOGS": "0",
    # Behind HAProxy a replica that goes stays so long; HAProxy asks another one where it is refused.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
}


def run(settings: Settings) -> int:
    """Serve on Ray until SIGTERM or SIGINT, then drain; return the exit code 0. Raises `BnfoldError` if it can't."""
    settings = _checked(settings)
    with log.Logging(settings.log_format == "json", settings.log_level):
        place = bind(settings.host, settings.metrics_port)
        try:
            settings = _join(settings)
            fleet = Fleet(_deploy(settings), read_token(settings.token_file))
            with asyncio.Runner(loop_factory=listeners.event_loop()) as runner:
                runner.run(_serve(fleet, settings, place))
        finally:
            place.close()
            serve.shutdown()  # type: ignore[no-untyped-call]
            ray.shutdown()
            log.info("gone")
    return 0


@dataclass
class Fleet:
    """All replicas, as one."""

    handle: Any  # a DeploymentHandle of the replicas
    token: bytes | None

    async def call(self, method: str, data: bytes, remaining: float | None) -> bytes:
        """Have one replica answer a call; raises `Refused`."""
        asked = self.handle.call.remote(method, data, remaining)
        try:
            status, answer = await asked
        except asyncio.CancelledError:
            asked.cancel()
            raise
        except (RayActorError, RayServeException, TaskCancelledError) as error:
            raise overloaded("the replica that had this request is gone; try again", "lost") from error
        except RayError as error:
            raise failed() from error
        if status != 200:
            raise Refused(answer, status)
        return bytes(answer)

    async def metrics(self, request: Request) -> Response:
        """GET /metrics: every replica's, told apart by the label `replica`."""
        try:
            authorize(self.token, request.headers.get("authorization"))
        except Refused as error:
            return refusal(error)
        found = Labelled(await ask(self.handle, "metrics", timeout=_ASK_S))
        return Response(exposition.render(found), media_type=exposition.CONTENT_TYPE)


@dataclass(frozen=True)
class Labelled(Collector):
    """Metric families of several replicas under one roof."""

    replicas: Sequence[tuple[str, list[Metric]]]

    def collect(self) -> Iterable[Metric]:
        """All samples of a family together, as Prometheus wants them."""
        families: dict[str, Metric] = {}
        for name, found in self.replicas:
            for family in found:
                samples = [sample._replace(labels={**sample.labels, "replica": name}) for sample in family.samples]
                empty = Metric(family.name, family.documentation, family.type)
                families.setdefault(family.name, empty).samples += samples
        return families.values()


async def _serve(fleet: Fleet, settings: Settings, place: Any) -> None:
    stop, secured = stopped(), listeners.tls(settings)
    budget = Budget(settings.max_pending, freed=Trimmer(trim).freed)
    rpc, rpc_port = listeners.grpc_server(settings, fleet.call, budget, secured)
    metrics = listeners.http_server(Starlette(routes=[Route("/metrics", fleet.metrics)]), settings, secured)
    task = asyncio.get_running_loop().create_task(metrics.serve([place]))
    await rpc.start()
    try:
        places = {"http": settings.http_port, "grpc": rpc_port, "metrics": place.getsockname()[1]}
        replicas = f"{settings.min_replicas}–{settings.max_replicas}"
        log.info("bnfold serves", source=settings.source, host=settings.host, **places, engine="ray", replicas=replicas,
                 version=__version__)  # fmt: skip
        reasons = _told(await ask(fleet.handle, "state", timeout=_ASK_S))
        log.info("ready" if not reasons else "not ready", reasons=reasons)
        await stop.wait()
        log.info("going down")
        await ask(fleet.handle, "drain", timeout=settings.drain + _ASK_S)
    finally:
        await rpc.stop(0.5)
        metrics.should_exit = True
        await task


def _told(states: Sequence[Any]) -> list[str]:
    """Log what is served; return why it is not ready. Raises `ModelError` if nothing can be served."""
    errors = [error for error, _, _ in states if error]
    if errors or not states:
        raise ModelError(errors[0] if errors else "no replica could start; its log in /tmp/ray says why")
    for name, target in states[0][2].items():
        log.info("served", model=name, version=target.version, sha256=target.digest[:12], replicas=len(states))
    return sorted({reason for _, reasons, _ in states for reason in reasons})


def _checked(settings: Settings) -> Settings:
    """The settings with what Ray leaves open filled in. Raises `BnfoldError` for what can't be, before Ray starts."""
    repository(settings.source, settings.name)
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1":
        if settings.host in _LOOPBACK:
            raise UsageError("with HAProxy Ray's replicas listen on all addresses; say so: --host 0.0.0.0")
        if settings.tls_cert is not None:
            raise UsageError("Ray's HAProxy has no TLS; leave RAY_SERVE_ENABLE_HA_PROXY out, or end TLS in front of it")
    listeners.tls(settings)
    read_token(settings.token_file)
    for port in (settings.http_port, settings.grpc_port):
        bind(settings.host, port).close()
    most = settings.max_replicas
    if most is not None and most < settings.min_replicas:
        raise UsageError(f"--max-replicas {most} is less than --min-replicas {settings.min_replicas}")
    return replace(
        settings,
        source=settings.source.resolve(),
        http_port=settings.http_port or free_port(settings.host),
        threads=settings.threads or 1,
        concurrency=settings.concurrency or 1,
    )


def _join(settings: Settings) -> Settings:
    """Start Ray, or join the cluster at RAY_ADDRESS; the settings say then how many replicas there can be."""
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    cpus = _cpus(settings)
    ours = signal.getsignal(signal.SIGTERM)
    quiet: dict[str, Any] = {"configure_logging": True, "logging_level": logging.ERROR, "log_to_driver": True}
    try:
        if "RAY_ADDRESS" in os.environ:
            ray.init(**quiet)
        else:
            own = max(cores(), cpus * settings.min_replicas)
            ray.init(num_cpus=own, include_dashboard=False, _node_ip_address="127.0.0.1", object_store_memory=_STORE,
                     **quiet)  # fmt: skip
    except (OSError, RuntimeError, ConnectionError, RayError) as error:
        raise ClusterError(f"Ray can't be started or joined: {error}") from error
    except SystemExit:  # Ray's handler of SIGTERM
        if callable(ours):
            ours(signal.SIGTERM, None)
        raise
    signal.signal(signal.SIGTERM, ours)
    room = int(ray.cluster_resources().get("CPU", 1)) // cpus  # type: ignore[no-untyped-call]
    return replace(settings, max_replicas=settings.max_replicas or max(settings.min_replicas, room))


def _cpus(settings: Settings) -> int:
    """What one replica takes: its runs at one time, each with its threads."""
    return (settings.threads or 1) * (settings.concurrency or 1)


def _deploy(settings: Settings) -> Any:
    """Run the replicas until they are up; return the handle by which they are asked."""
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(
        http_options={
            "host": settings.host,
            "port": settings.http_port,
            "ssl_certfile": settings.tls_cert,
            "ssl_keyfile": settings.tls_key,
            "keep_alive_timeout_s": listeners.KEEP_ALIVE_S,
        },
        logging_config=_QUIET,
    )
    deployment: Any = serve.deployment(
        serve.ingress()(Replica),
        name=DEPLOYMENT,
        ray_actor_options={"num_cpus": _cpus(settings), "num_gpus": int(not named(settings.provider).on_cpu)},
        max_ongoing_requests=settings.max_connections,
        graceful_shutdown_timeout_s=settings.drain,
        logging_config=_QUIET,
        **_scaling(settings),
    )
    try:
        return serve.run(deployment.bind(settings), name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        raise ClusterError(f"Ray does not run the replicas: {error}") from error


def _scaling(settings: Settings) -> dict[str, Any]:
    least, most = settings.min_replicas, settings.max_replicas or settings.min_replicas
    if least == most:
        return {"num_replicas": least}
    # One request that runs and one that waits keep a replica busy; more call for another.
    target = 2 * (settings.concurrency or 1)
    scaling = AutoscalingConfig(
        min_replicas=least, max_replicas=most, target_ongoing_requests=target, upscale_delay_s=_UPSCALE_S
    )
    return {"autoscaling_config": scaling}
