"""Limits a Linux container sets on CPU time and memory, from cgroup v1 and v2 files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

CGROUP_FILE = Path("proc/self/cgroup")
CGROUP_MOUNT = Path("sys/fs/cgroup")

# v1 writes "no limit" as the highest page-aligned number; no machine has 4 EiB.
NO_LIMIT_BYTES = 2**62


@dataclass(frozen=True)
class CgroupLimits:
    """The tightest limits on this process. None means no limit, or no cgroups.

    quota_cpus is CPU seconds per second. memory_available_bytes is what the limit leaves free;
    file cache that the kernel drops on demand counts as free, because a mapped model file is cache.
    """

    quota_cpus: float | None = None
    memory_bytes: int | None = None
    memory_available_bytes: int | None = None


def read_cgroup_limits(root: Path = Path("/")) -> CgroupLimits:
    """Read this process's limits under a file system root. Unreadable files mean no limit."""
    paths = parse_cgroup_paths(_read(root / CGROUP_FILE))
    mount = root / CGROUP_MOUNT
    if (mount / "cgroup.controllers").exists():
        levels = list(_levels(mount, paths.get("", "/")))
        quotas = [_quota_v2(level) for level in levels]
        memory = [_memory(level, "memory.max", "memory.current", "") for level in levels]
    else:
        quotas = [_quota_v1(level) for level in _levels_v1(mount, paths, "cpu")]
        memory = [
            _memory(level, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
            for level in _levels_v1(mount, paths, "memory")
        ]
    return CgroupLimits(
        quota_cpus=min((quota for quota in quotas if quota is not None), default=None),
        memory_bytes=min((limit for limit, _ in memory if limit is not None), default=None),
        memory_available_bytes=min((free for _, free in memory if free is not None), default=None),
    )


def parse_cgroup_paths(text: str) -> dict[str, str]:
    """Parse /proc/self/cgroup into controller -> path; v2's single hierarchy has the key ""."""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        fields = line.split(":", 2)
        if len(fields) == 3:
            paths |= dict.fromkeys(fields[1].split(","), fields[2])
    return paths


def parse_cpu_max(text: str) -> float | None:
    """Parse v2's cpu.max, "<quota us> <period us>", into CPUs; None for "max" or nonsense."""
    fields = text.split()
    if len(fields) != 2 or not all(field.isdigit() for field in fields) or int(fields[1]) == 0:
        return None
    return int(fields[0]) / int(fields[1])


def _levels(base: Path, path: str) -> Iterator[Path]:
    # A path from outside this cgroup namespace climbs with "..": only the mount itself is ours.
    relative = PurePosixPath(path.lstrip("/"))
    if ".." in relative.parts:
        relative = PurePosixPath()
    for level in (relative, *relative.parents):
        if (base / level).is_dir():
            yield base / level


def _levels_v1(mount: Path, paths: dict[str, str], controller: str) -> list[Path]:
    names = [controller, "cpu,cpuacct", "cpuacct,cpu"] if controller == "cpu" else [controller]
    base = next((mount / name for name in names if (mount / name).is_dir()), None)
    return list(_levels(base, paths.get(controller, "/"))) if base else []


def _quota_v2(level: Path) -> float | None:
    return parse_cpu_max(_read(level / "cpu.max"))


def _quota_v1(level: Path) -> float | None:
    # An unlimited quota reads -1, which parse_cpu_max takes for no number.
    quota, period = _read(level / "cpu.cfs_quota_us"), _read(level / "cpu.cfs_period_us")
    return parse_cpu_max(f"{quota.strip()} {period.strip()}")


def _memory(level: Path, limit: str, usage: str, prefix: str) -> tuple[int | None, int | None]:
    limit_bytes = _number(level / limit)
    if limit_bytes is None or limit_bytes >= NO_LIMIT_BYTES:
        return None, None
    used_bytes = _number(level / usage)
    if used_bytes is None:
        return limit_bytes, None
    droppable = 0
    for line in _read(level / "memory.stat").splitlines():
        key, _, value = line.partition(" ")
        if key == f"{prefix}inactive_file" and value.isdigit():
            droppable = int(value)
    return limit_bytes, max(0, limit_bytes - max(0, used_bytes - droppable))


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdigit() else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
