"""Apple Silicon: chip, GPU cores and unified memory, from macOS's own system report."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from typing import Any

from farm.domain.hardware import GIB, Gpu
from worker.probe.tool import run_tool

# It takes 0.3 s at rest and several seconds on a machine that has just woken.
SYSTEM_PROFILER_LIMIT_S = 20.0
SYSTEM_PROFILER = ("system_profiler", "-json", "SPHardwareDataType", "SPDisplaysDataType")


@dataclass(frozen=True)
class AppleChip:
    """An Apple Silicon chip. What the report leaves out is None.

    memory_bytes is the machine's unified memory, of which Metal lends the GPU a part.
    """

    name: str
    gpu_cores: int | None
    memory_bytes: int | None

    @property
    def gpu(self) -> Gpu:
        """Return the chip's GPU, named with its cores: one chip is sold with different GPUs."""
        cores = f" ({self.gpu_cores}-core GPU)" if self.gpu_cores else ""
        return Gpu(f"{self.name}{cores}", self.memory_bytes)


def read_apple_chip() -> AppleChip | None:
    """Return this machine's chip, None anywhere but on Apple Silicon with a readable report."""
    if sys.platform != "darwin":
        return None
    run = run_tool(SYSTEM_PROFILER, SYSTEM_PROFILER_LIMIT_S)
    return parse_system_profiler(run.stdout) if run.succeeded else None


def parse_system_profiler(text: str) -> AppleChip | None:
    """Parse `system_profiler -json SPHardwareDataType SPDisplaysDataType`.

    None for an Intel Mac, which has no chip type, and for output that is not such a report.
    """
    try:
        report = json.loads(text)
    except ValueError:
        return None
    hardware = _first(report, "SPHardwareDataType")
    name = hardware.get("chip_type")
    if not isinstance(name, str) or not name.startswith("Apple"):
        return None
    return AppleChip(
        name=name,
        gpu_cores=_number(_first(report, "SPDisplaysDataType").get("sppci_cores")),
        memory_bytes=_memory_bytes(hardware.get("physical_memory")),
    )


def _first(report: Any, section: str) -> dict[str, Any]:
    entries = report.get(section) if isinstance(report, dict) else None
    first = entries[0] if isinstance(entries, list) and entries else None
    return first if isinstance(first, dict) else {}


def _number(value: Any) -> int | None:
    return int(value) if isinstance(value, str) and value.isdigit() else None


def _memory_bytes(value: Any) -> int | None:
    match = re.fullmatch(r"(\d+) (GB|TB)", value) if isinstance(value, str) else None
    if not match:
        return None
    return int(match[1]) * GIB * (1024 if match[2] == "TB" else 1)
