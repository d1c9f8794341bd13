"""What one look at a machine's NVIDIA GPUs gives, whichever tool it came from."""

from __future__ import annotations

from dataclasses import dataclass

from farm.domain.hardware import Gpu

# Bits of nvmlClocksEventReasons in nvml.h. Idle (0x1) is left out: a GPU at rest is not throttled.
THROTTLE_BITS: dict[int, str] = {
    0x002: "applications-clocks-setting",
    0x004: "sw-power-cap",
    0x008: "hw-slowdown",
    0x010: "sync-boost",
    0x020: "sw-thermal-slowdown",
    0x040: "hw-thermal-slowdown",
    0x080: "hw-power-brake-slowdown",
    0x100: "display-clock-setting",
}
IDLE_BIT = 0x001


@dataclass(frozen=True)
class NvidiaGpu:
    """One GPU or MIG device. None means not reported; throttle_reasons () means not throttled.

    memory_bytes is None on GPUs that share the machine's memory. busy_share is 0 to 1, the share
    of the driver's last sample period in which a kernel ran.
    """

    name: str
    uuid: str | None = None
    memory_bytes: int | None = None
    compute_capability: str | None = None
    temperature_c: int | None = None
    throttle_reasons: tuple[str, ...] | None = None
    memory_used_bytes: int | None = None
    busy_share: float | None = None

    @property
    def stable(self) -> Gpu:
        """Return the facts that identify hardware."""
        return Gpu(self.name, self.memory_bytes, self.compute_capability)


@dataclass(frozen=True)
class NvidiaReading:
    """The driver and the GPUs it shows, in its order."""

    driver_version: str | None
    gpus: tuple[NvidiaGpu, ...]


def throttle_reasons(bits: int | None) -> tuple[str, ...] | None:
    """Name the reasons in NVML's bit mask, None where it is not reported.

    A bit that is newer than the table is named by its number.
    """
    if bits is None:
        return None
    active = [1 << shift for shift in range(bits.bit_length()) if bits >> shift & 1]
    return tuple(THROTTLE_BITS.get(bit, f"bit-{bit:#x}") for bit in active if bit != IDLE_BIT)
