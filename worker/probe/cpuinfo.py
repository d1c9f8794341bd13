"""What Linux says about processors in /proc/cpuinfo, for x86, ARM and the rest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Set
from dataclasses import dataclass

from worker.probe.arm_parts import arm_core_name

# Where a processor's name stands, by architecture: x86 and LoongArch, POWER, RISC-V.
MODEL_FIELDS = ("model name", "cpu", "uarch")


@dataclass(frozen=True)
class LogicalCpu:
    """One logical processor. core is (socket, core id), None where the kernel gives no ids."""

    index: int
    model: str | None
    core: tuple[int, int] | None


@dataclass(frozen=True)
class CpuInfo:
    """A parsed /proc/cpuinfo. board is a single-board computer's name, None elsewhere."""

    cpus: tuple[LogicalCpu, ...]
    board: str | None


@dataclass(frozen=True)
class UsableCpu:
    """The processor as far as this process may use it. model is None where it has no name."""

    model: str | None
    physical_cores: int
    logical_cores: int


def parse_cpuinfo(text: str) -> CpuInfo:
    """Parse /proc/cpuinfo. Clock, bogomips and microcode are left out: they move.

    Text that is not a cpuinfo gives no processors.
    """
    shared: dict[str, str] = {}
    blocks: list[dict[str, str]] = []
    for block in _blocks(text):
        if block.get("processor", "").isdigit():
            blocks.append(block)
        else:
            shared |= block
    cpus = tuple(
        LogicalCpu(int(block["processor"]), _model(shared | block), _core(block))
        for block in blocks
    )
    return CpuInfo(cpus, shared.get("model"))


def usable_cpu(
    info: CpuInfo, allowed: Set[int] | None = None, quota_cpus: float | None = None
) -> UsableCpu | None:
    """Return what a process may use: the allowed processors, no more than its CPU quota.

    allowed holds the indices this process may run on, None for all. quota_cpus is CPU time per
    time, None for no quota; a broken number counts as the next whole one, as container-aware
    runtimes do. None when no processor is known. Processors without core ids count as a core each:
    right for every ARM core that `arm_parts.py` names, none of which has SMT.
    """
    cpus = [cpu for cpu in info.cpus if allowed is None or cpu.index in allowed]
    if not cpus:
        return None
    logical = len(cpus)
    physical = len({cpu.core if cpu.core is not None else cpu.index for cpu in cpus})
    if quota_cpus is not None:
        ceiling = max(1, math.ceil(quota_cpus))
        logical, physical = min(logical, ceiling), min(physical, ceiling)
    models = dict.fromkeys(cpu.model for cpu in cpus if cpu.model is not None)
    name = " + ".join(models) or None
    if info.board is not None:
        name = f"{info.board} ({name})" if name else info.board
    return UsableCpu(name, physical, logical)


def _blocks(text: str) -> Iterator[dict[str, str]]:
    for paragraph in text.split("\n\n"):
        fields: dict[str, str] = {}
        for line in paragraph.splitlines():
            key, separator, value = line.partition(":")
            if separator:
                fields[key.strip().lower()] = " ".join(value.split())
        if fields:
            yield fields


def _model(fields: dict[str, str]) -> str | None:
    implementer, part = fields.get("cpu implementer"), fields.get("cpu part")
    if implementer and part:
        name = arm_core_name(implementer, part)
        # 32-bit kernels do give ARM a model name, but it is the architecture's: "ARMv7 Processor".
        return name or f"ARM implementer {implementer} part {part}"
    return next((fields[field] for field in MODEL_FIELDS if fields.get(field)), None)


def _core(fields: dict[str, str]) -> tuple[int, int] | None:
    core = fields.get("core id", "")
    if not core.isdigit():
        return None
    socket = fields.get("physical id", "0")
    return (int(socket) if socket.isdigit() else 0, int(core))
