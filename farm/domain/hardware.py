"""What a machine is: stable facts only, so that its identity never moves with a reading."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from enum import StrEnum

GIB = 1024**3


class MachineKind(StrEnum):
    """The part of a machine that carries the decoding."""

    CPU = "cpu"
    NVIDIA = "nvidia"
    APPLE = "apple"


@dataclass(frozen=True)
class Gpu:
    """One GPU's stable facts. `memory_bytes` is None where the tool does not report it."""

    name: str
    memory_bytes: int | None
    compute_capability: str | None = None


@dataclass(frozen=True)
class Hardware:
    """A machine's stable hardware facts; equal facts give an equal `key` on any host."""

    kind: MachineKind
    cpu_model: str
    physical_cores: int
    logical_cores: int
    memory_bytes: int
    arch: str
    os: str
    gpus: tuple[Gpu, ...] = ()

    @property
    def rounded(self) -> Hardware:
        """Return the facts that make the identity. Memory counts in whole GiB: kernels report a
        few MB less or more from one boot to the next."""
        gpus = tuple(
            replace(gpu, memory_bytes=gpu.memory_bytes and round(gpu.memory_bytes / GIB) * GIB)
            for gpu in self.gpus
        )
        return replace(self, memory_bytes=round(self.memory_bytes / GIB) * GIB, gpus=gpus)

    @property
    def key(self) -> str:
        """Return a 16-digit identity over the rounded facts."""
        facts = asdict(self.rounded)
        for part in (facts, *facts["gpus"]):
            part["memory_bytes"] = part["memory_bytes"] and part["memory_bytes"] // GIB
        canonical = json.dumps(facts, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """Return the name people use: the GPU's where one does the work, else the CPU's."""
        if self.kind is MachineKind.NVIDIA and self.gpus:
            count = f"{len(self.gpus)}x " if len(self.gpus) > 1 else ""
            return f"{count}{self.gpus[0].name}"
        return f"{self.cpu_model}, {self.physical_cores} cores"


@dataclass(frozen=True)
class Machine:
    """A named machine of some hardware."""

    name: str
    hardware: Hardware
