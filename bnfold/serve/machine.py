"""How many cores this process may use: what the scheduler allows and what the container's quota leaves."""

from __future__ import annotations

import math
import os
from pathlib import Path

_SELF, _CGROUP = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def cores(*, membership: Path = _SELF, root: Path = _CGROUP) -> int:
    """Whole cores, at least one; a quota of a fraction counts as the next whole core."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(membership, root)
    return max(1, allowed if quota is None else min(allowed, math.ceil(quota)))


def _quota(membership: Path, root: Path) -> float | None:
    """The smallest quota on the way from our own control group to the root, in cores (cgroups version 2 and 1)."""
    found = []
    for line in _lines(membership):
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root if not controllers else root / "cpu"
        folder = base / path.lstrip("/")
        # In a container the path may be the host's; then our group is mounted at the base.
        for place in {base, *(place for place in (folder, *folder.parents) if place.is_relative_to(base))}:
            found.append(_limit(place))
    return min((quota for quota in found if quota is not None), default=None)


def _limit(folder: Path) -> float | None:
    try:
        if words := " ".join(_lines(folder / "cpu.max")).split():
            return None if words[0] == "max" else int(words[0]) / int(words[1])
        quota = _lines(folder / "cpu.cfs_quota_us")
        period = _lines(folder / "cpu.cfs_period_us")
        return int(quota[0]) / int(period[0]) if quota and period and int(quota[0]) > 0 else None
    except (ValueError, IndexError, ZeroDivisionError):
        return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
