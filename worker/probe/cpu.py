"""The processor and memory this process may use, on Linux, macOS and, roughly, elsewhere."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from worker.probe.cgroup import read_cgroup_limits
from worker.probe.cpuinfo import CpuInfo, parse_cpuinfo, usable_cpu
from worker.probe.memory import installed_memory_bytes
from worker.probe.tool import ToolStatus, run_tool

CPUINFO = Path("/proc/cpuinfo")
BOARD = Path("/proc/device-tree/model")

SYSCTL_LIMIT_S = 5.0
SYSCTL_NAMES = ("machdep.cpu.brand_string", "hw.physicalcpu", "hw.logicalcpu", "hw.memsize")
FAST_CORES = "hw.perflevel0.physicalcpu"


@dataclass(frozen=True)
class Cpu:
    """Stable facts, already cut to what a container or an affinity mask leaves."""

    model: str
    physical_cores: int
    logical_cores: int
    memory_bytes: int


def read_cpu() -> Cpu:
    """Return the processor and memory of this machine. Never raises: the worst is a bare guess.

    On Linux the machine is what this process may use: its CPU affinity, its cgroup's CPU quota and
    its cgroup's memory limit.
    """
    if sys.platform == "darwin":
        run = run_tool(("sysctl", *SYSCTL_NAMES), SYSCTL_LIMIT_S)
        # sysctl exits 1 when it does not know one name, and still prints the others.
        facts = parse_sysctl(run.stdout) if run.status is ToolStatus.FINISHED else {}
        return _mac_cpu(facts)
    if sys.platform == "linux":
        return _linux_cpu()
    return _guess()


def decoding_threads() -> int:
    """Return llama.cpp's own choice for its tools: a thread per physical core, where there are two
    kinds of core per fast one (common/common.cpp, common_cpu_get_num_physical_cores)."""
    if sys.platform == "darwin":
        run = run_tool(("sysctl", FAST_CORES), SYSCTL_LIMIT_S)
        facts = parse_sysctl(run.stdout) if run.status is ToolStatus.FINISHED else {}
        if fast := _count(facts.get(FAST_CORES)):
            return fast
    return read_cpu().physical_cores


def parse_sysctl(text: str) -> dict[str, str]:
    """Parse `sysctl name...` output, "name: value" lines. Lines of another form are skipped."""
    pairs = (line.partition(": ") for line in text.splitlines())
    return {name.strip(): value.strip() for name, separator, value in pairs if separator}


def _linux_cpu() -> Cpu:
    limits = read_cgroup_limits()
    info = parse_cpuinfo(_text(CPUINFO))
    board = info.board or _text(BOARD).strip("\0\n ") or None
    allowed = os.sched_getaffinity(0) if sys.platform == "linux" else None
    usable = usable_cpu(CpuInfo(info.cpus, board), allowed, limits.quota_cpus)
    guess = _guess()
    installed = installed_memory_bytes() or guess.memory_bytes
    memory = installed if limits.memory_bytes is None else min(installed, limits.memory_bytes)
    if usable is None:
        return Cpu(guess.model, guess.physical_cores, guess.logical_cores, memory)
    return Cpu(usable.model or guess.model, usable.physical_cores, usable.logical_cores, memory)


def _mac_cpu(facts: dict[str, str]) -> Cpu:
    guess = _guess()
    return Cpu(
        model=facts.get("machdep.cpu.brand_string") or guess.model,
        physical_cores=_count(facts.get("hw.physicalcpu")) or guess.physical_cores,
        logical_cores=_count(facts.get("hw.logicalcpu")) or guess.logical_cores,
        memory_bytes=_count(facts.get("hw.memsize")) or guess.memory_bytes,
    )


def _guess() -> Cpu:
    logical = psutil.cpu_count() or 1
    return Cpu(
        model=platform.processor() or platform.machine() or "unknown CPU",
        physical_cores=psutil.cpu_count(logical=False) or logical,
        logical_cores=logical,
        memory_bytes=psutil.virtual_memory().total,
    )


def _count(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
