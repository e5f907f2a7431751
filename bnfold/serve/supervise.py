"""The parent of the worker: holds the sockets, passes signals on, and starts a worker anew that died.

A crash in a native library or a kill for memory takes the worker; callers meanwhile wait in the sockets' backlog. The
parent imports next to nothing, so that there is little in it that could fail.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from typing import Any

from bnfold.errors import BnfoldError, UsageError
from bnfold.serve.settings import Settings, parse_settings
from bnfold.serve.sockets import bind, free_port

_VARIABLE = "BNFOLD_WORKER"
# So many deaths within so many seconds are no accident.
_DEATHS, _WITHIN_S = 5, 60.0
_PAUSE_S = 0.2


class EngineError(BnfoldError):
    """An engine that is not installed."""


class WorkerError(BnfoldError):
    """The worker dies again and again."""


def supervise(settings: Settings) -> int:
    """Run a worker until SIGTERM or SIGINT; return its exit code. Raises `WorkerError` if it can't be kept alive."""
    if os.name != "posix":
        return serve(settings)
    sockets = [bind(settings.host, port) for port in (settings.http_port, settings.metrics_port)]
    if settings.grpc_port == 0:
        settings = replace(settings, grpc_port=free_port(settings.host))
    try:
        return _keep(settings, sockets)
    finally:
        for place in sockets:
            place.close()


def serve(settings: Settings, **handed: Any) -> int:
    """Serve in this process; return the exit code. Raises `UsageError` if what serving needs is not installed."""
    try:
        from bnfold.serve.app import run
    except ModuleNotFoundError as error:
        raise UsageError(f'serving needs {error.name}: pip install "bnfold[serve]"') from error
    return run(settings, **handed)


def cluster(settings: Settings) -> int:
    """Serve on Ray; return the exit code. Raises `EngineError` if Ray is not installed."""
    try:
        from bnfold.serve.cluster import run
    except ModuleNotFoundError as error:
        raise EngineError(f'--engine ray needs {error.name}: pip install "bnfold[serve,ray]"') from error
    return run(settings)


def worker() -> int:
    """The child's side: serve on the inherited sockets; return the exit code."""
    handed = json.loads(os.environ.pop(_VARIABLE))
    places = [socket.socket(fileno=number) for number in handed["sockets"]]
    parent = socket.socket(fileno=handed["parent"])
    return serve(parse_settings(handed["settings"]), bound=places, parent=parent, restarts=handed["restarts"])


def _keep(settings: Settings, sockets: list[socket.socket]) -> int:
    stopping: list[int] = []
    child: subprocess.Popen[bytes] | None = None

    def stop(number: int, frame: Any) -> None:
        stopping.append(number)
        if child is not None and child.returncode is None:
            child.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    deaths: list[float] = []
    restarts = 0
    try:
        while True:
            ours, theirs = socket.socketpair()
            child = _start(settings, sockets, theirs, restarts)
            theirs.close()
            if stopping:  # between the last worker and this one
                child.send_signal(signal.SIGTERM)
            code = child.wait()
            ours.setblocking(False)
            served = _said_ready(ours)
            ours.close()
            if code >= 0 and (code == 0 or not served):
                return code
            if stopping:
                return 128 + stopping[0]
            restarts += 1
            deaths = [moment for moment in deaths if time.monotonic() - moment < _WITHIN_S] + [time.monotonic()]
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            if not served and restarts == 1:
                raise WorkerError(f"the worker died ({how}) before it served anything; its last lines may say why")
            if len(deaths) > _DEATHS:
                raise WorkerError(f"the worker died {len(deaths)} times in {_WITHIN_S:g} s (last: {how}); giving up")
            print(f"bnfold: the worker died ({how}); starting another", file=sys.stderr, flush=True)
            time.sleep(_PAUSE_S * (len(deaths) - 1))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(
    settings: Settings, sockets: list[socket.socket], parent: socket.socket, restarts: int
) -> subprocess.Popen[bytes]:
    numbers = [place.fileno() for place in sockets]
    handed = {
        "settings": {**asdict(settings), "source": str(settings.source)},
        "sockets": numbers,
        "parent": parent.fileno(),
        "restarts": restarts,
    }
    # A terminal interrupts the worker too, perhaps in the middle of an import: it takes SIGTERM from us alone.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "bnfold.serve"],
            env={**os.environ, _VARIABLE: json.dumps(handed)},
            pass_fds=[*numbers, parent.fileno()],
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _said_ready(ours: socket.socket) -> bool:
    try:
        return bool(ours.recv(1))
    except OSError:
        return False
