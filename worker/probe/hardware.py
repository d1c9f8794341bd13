"""What this machine is: the stable facts that its identity is made of."""

from __future__ import annotations

import platform

from farm.domain.hardware import Gpu, Hardware, MachineKind
from worker.probe.apple import AppleChip, read_apple_chip
from worker.probe.cpu import Cpu, read_cpu
from worker.probe.nvidia import read_nvidia
from worker.probe.nvidia_reading import NvidiaReading

OS_NAMES = {"Darwin": "macos"}


def probe_hardware() -> Hardware:
    """Return this machine's hardware: what this process may use of it, in a container too.

    Never raises. A source whose tool is missing or hangs is absent, with a warning in the log for
    a hang: the machine then looks like one without that part, and has another key.
    """
    return assemble(
        read_cpu(), read_nvidia(), read_apple_chip(), platform.machine(), platform.system()
    )


def assemble(
    cpu: Cpu, nvidia: NvidiaReading | None, apple: AppleChip | None, arch: str, system: str
) -> Hardware:
    """Join the sources' stable facts. system is `platform.system()`'s word."""
    kind = MachineKind.CPU
    gpus: tuple[Gpu, ...] = ()
    if nvidia is not None and nvidia.gpus:
        kind, gpus = MachineKind.NVIDIA, tuple(gpu.stable for gpu in nvidia.gpus)
    elif apple is not None:
        kind, gpus = MachineKind.APPLE, (apple.gpu,)
    elif system == "Darwin" and cpu.model.startswith("Apple"):
        kind, gpus = MachineKind.APPLE, (Gpu(cpu.model, cpu.memory_bytes),)
    return Hardware(
        kind=kind,
        cpu_model=cpu.model,
        physical_cores=cpu.physical_cores,
        logical_cores=cpu.logical_cores,
        memory_bytes=cpu.memory_bytes,
        arch=arch,
        os=OS_NAMES.get(system, system.lower()),
        gpus=gpus,
    )
