"""The facts about a machine that move, recorded before and after each job."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil

from worker.probe.load import busy_share_of_others
from worker.probe.memory import available_memory_bytes
from worker.probe.nvidia import read_nvidia
from worker.probe.power import read_cpu_governor, read_power_source

# Long enough for 20 ticks of each processor's 10 ms counter, short enough to do around every job.
LOAD_WINDOW_S = 0.1

# hwmon names of the sensors inside a processor: Intel, AMD (two drivers), ARM boards.
CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "soc_thermal", "cpu-thermal")


@dataclass(frozen=True)
class GpuState:
    """A GPU's moving readings. None means not reported; throttle_reasons () means not throttled.

    busy_share is 0 to 1. Both busy_share and memory_used_bytes count every process's use.
    """

    name: str
    temperature_c: int | None
    throttle_reasons: tuple[str, ...] | None
    busy_share: float | None
    memory_used_bytes: int | None


@dataclass(frozen=True)
class Environment:
    """One reading of everything that can make the same job faster or slower on the same hardware.

    None means not reported, never zero. busy_share_of_others is 0 to 1, over the processors this
    process may use. memory_available_bytes is what a new process could take, under the container's
    limit. cpu_temperature_c is the hottest of the processor's own sensors. Library versions are
    those of this interpreter; a job's build may bring its own.
    """

    os_release: str | None
    kernel: str
    nvidia_driver_version: str | None
    cpu_governor: str | None
    power_source: str | None
    load_1min: float | None
    busy_share_of_others: float | None
    memory_available_bytes: int | None
    cpu_temperature_c: float | None
    gpus: tuple[GpuState, ...]
    python_version: str
    llama_cpp_python_version: str | None
    numpy_version: str | None

    def to_payload(self) -> dict[str, Any]:
        """Return the reading as JSON values: objects, lists, strings, numbers and null."""
        payload: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return payload


def read_environment(
    load_window_s: float = LOAD_WINDOW_S, *, has_nvidia: bool = True
) -> Environment:
    """Read the environment now. Takes load_window_s and the tools' time; never raises.

    has_nvidia: False where the machine is known to have no such GPU; looking for one takes longer
    than all else.
    """
    # First, before the tools below make work of their own.
    busy_share = busy_share_of_others(load_window_s)
    nvidia = read_nvidia() if has_nvidia else None
    return Environment(
        os_release=_os_release(),
        kernel=platform.release(),
        nvidia_driver_version=nvidia.driver_version if nvidia else None,
        cpu_governor=read_cpu_governor(),
        power_source=read_power_source(),
        load_1min=_load_1min(),
        busy_share_of_others=busy_share,
        memory_available_bytes=available_memory_bytes(),
        cpu_temperature_c=_cpu_temperature_c(),
        gpus=tuple(
            GpuState(
                name=gpu.name,
                temperature_c=gpu.temperature_c,
                throttle_reasons=gpu.throttle_reasons,
                busy_share=gpu.busy_share,
                memory_used_bytes=gpu.memory_used_bytes,
            )
            for gpu in (nvidia.gpus if nvidia else ())
        ),
        python_version=platform.python_version(),
        llama_cpp_python_version=_installed_version("llama-cpp-python"),
        numpy_version=_installed_version("numpy"),
    )


def _os_release() -> str | None:
    mac_version = platform.mac_ver()[0]
    if mac_version:
        return f"macOS {mac_version}"
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        return None


def _load_1min() -> float | None:
    try:
        return os.getloadavg()[0]
    except OSError:
        return None


def _cpu_temperature_c() -> float | None:
    # psutil has no such function on macOS and Windows.
    read = getattr(psutil, "sensors_temperatures", None)
    if read is None:
        return None
    try:
        sensors = read()
    except (psutil.Error, OSError):
        return None
    readings = [entry.current for name in CPU_SENSORS for entry in sensors.get(name, ())]
    # An unconnected sensor reads 0 or less.
    return max((celsius for celsius in readings if celsius and celsius > 0), default=None)


def _installed_version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
