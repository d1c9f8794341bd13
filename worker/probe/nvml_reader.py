"""Print what NVML reports as one JSON object; a program of its own, run by `nvidia.py`.

NVML calls cannot be interrupted: when the driver hangs, only another process can be given up.
Imports the standard library and nvidia-ml-py alone. What the driver does not report is null.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import pynvml

NOT_REPORTED = (pynvml.NVMLError, AttributeError)


def ask(function: str, *arguments: Any) -> Any:
    """Call one NVML function by name; None where the driver or the binding does not have it."""
    try:
        answer = getattr(pynvml, function)(*arguments)
    except NOT_REPORTED:
        return None
    return answer.decode() if isinstance(answer, bytes) else answer


def mig_devices(gpu: Any) -> list[Any] | None:
    """Return the MIG devices of a GPU, None where it is not partitioned."""
    mode = ask("nvmlDeviceGetMigMode", gpu)
    if not mode or mode[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
        return None
    slots = ask("nvmlDeviceGetMaxMigDeviceCount", gpu) or 0
    devices = (ask("nvmlDeviceGetMigDeviceHandleByIndex", gpu, slot) for slot in range(slots))
    return [device for device in devices if device is not None]


def describe(device: Any, gpu: Any) -> dict[str, Any]:
    """Return one device's facts. Temperature and clocks belong to the GPU a MIG device is on."""
    memory = ask("nvmlDeviceGetMemoryInfo", device)
    capability = ask("nvmlDeviceGetCudaComputeCapability", gpu)
    throttle_bits = ask("nvmlDeviceGetCurrentClocksEventReasons", gpu)
    if throttle_bits is None:
        throttle_bits = ask("nvmlDeviceGetCurrentClocksThrottleReasons", gpu)
    use = ask("nvmlDeviceGetUtilizationRates", device)
    return {
        "name": ask("nvmlDeviceGetName", device),
        "uuid": ask("nvmlDeviceGetUUID", device),
        "memory_bytes": memory and memory.total,
        "memory_used_bytes": memory and memory.used,
        "compute_capability": capability and ".".join(map(str, capability)),
        "temperature_c": ask("nvmlDeviceGetTemperature", gpu, pynvml.NVML_TEMPERATURE_GPU),
        "throttle_bits": throttle_bits,
        "busy_share": use and use.gpu / 100,
    }


def devices() -> Iterator[dict[str, Any]]:
    """Yield the devices CUDA can use: a partitioned GPU is its partitions, not itself."""
    for index in range(ask("nvmlDeviceGetCount") or 0):
        gpu = ask("nvmlDeviceGetHandleByIndex", index)
        if gpu is None:
            continue
        partitions = mig_devices(gpu)
        for device in [gpu] if partitions is None else partitions:
            yield describe(device, gpu)


def main() -> int:
    """Print the report; exit code 1 where there is no NVIDIA driver."""
    try:
        pynvml.nvmlInit()
    except NOT_REPORTED:
        return 1
    report = {"driver_version": ask("nvmlSystemGetDriverVersion"), "gpus": list(devices())}
    sys.stdout.write(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
