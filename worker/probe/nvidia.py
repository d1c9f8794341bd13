"""NVIDIA GPUs: through NVML where its Python binding works, else through nvidia-smi."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from worker.probe.nvidia_reading import NvidiaGpu, NvidiaReading, throttle_reasons
from worker.probe.nvidia_smi import read_nvidia_smi
from worker.probe.tool import ToolStatus, run_tool

# As for nvidia-smi: the first call may load the driver of every GPU.
NVML_LIMIT_S = 10.0
NVML_READER = Path(__file__).with_name("nvml_reader.py")


def read_nvidia() -> NvidiaReading | None:
    """Return the GPUs this process may use, None without an NVIDIA driver that answers.

    CUDA_VISIBLE_DEVICES is honoured as llama.cpp will: a worker given one GPU of eight is a
    machine with one GPU.
    """
    if sys.platform == "darwin":
        return None
    # -P keeps this folder's module names from shadowing those the child imports.
    run = run_tool((sys.executable, "-P", str(NVML_READER)), NVML_LIMIT_S)
    reading = parse_nvml(run.stdout) if run.succeeded else None
    # nvidia-smi asks the same driver: after a hang it would only hang as long again.
    if reading is None and run.status is not ToolStatus.TIMED_OUT:
        reading = read_nvidia_smi()
    if reading is None:
        return None
    visible = visible_gpus(reading.gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
    return replace(reading, gpus=visible)


def parse_nvml(text: str) -> NvidiaReading | None:
    """Parse the report of `nvml_reader.py`; None where it is not one."""
    try:
        report = json.loads(text)
        gpus = tuple(_gpu(device) for device in report["gpus"] if device["name"])
        return NvidiaReading(report["driver_version"], gpus)
    except (ValueError, KeyError, TypeError):
        return None


def visible_gpus(
    gpus: Sequence[NvidiaGpu], cuda_visible_devices: str | None
) -> tuple[NvidiaGpu, ...]:
    """Select GPUs as CUDA does, by index or by the start of a UUID; None shows all.

    The first entry that names no GPU ends the list (CUDA C++ Programming Guide, "Environment
    variables"). Indices follow the driver's order, which CUDA's differs from on machines with
    unlike GPUs unless CUDA_DEVICE_ORDER is PCI_BUS_ID.
    """
    if cuda_visible_devices is None:
        return tuple(gpus)
    selected: list[NvidiaGpu] = []
    for entry in (part.strip() for part in cuda_visible_devices.split(",")):
        if entry.isdigit():
            found = list(gpus[int(entry) : int(entry) + 1])
        else:
            found = [gpu for gpu in gpus if entry and (gpu.uuid or "").startswith(entry)]
        if len(found) != 1:
            break
        selected += found
    return tuple(selected)


def _gpu(device: Mapping[str, Any]) -> NvidiaGpu:
    facts = dict(device)
    bits = facts.pop("throttle_bits")
    return NvidiaGpu(**facts, throttle_reasons=throttle_reasons(bits))
