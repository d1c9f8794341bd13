"""NVIDIA GPUs from the text that nvidia-smi prints: the way without a working NVML binding."""

from __future__ import annotations

import csv
import re
from dataclasses import replace

from worker.probe.nvidia_reading import NvidiaGpu, NvidiaReading, throttle_reasons
from worker.probe.tool import run_tool

# On machines without the persistence daemon, the first call loads the driver of every GPU.
NVIDIA_SMI_LIMIT_S = 10.0
QUERY_FIELDS = (
    "name",
    "uuid",
    "driver_version",
    "memory.total",
    "memory.used",
    "compute_cap",
    "temperature.gpu",
    "clocks_throttle_reasons.active",
    "utilization.gpu",
)
MIB = 1024**2


def read_nvidia_smi(program: str = "nvidia-smi") -> NvidiaReading | None:
    """Ask nvidia-smi for every GPU; None where it is missing, hangs or lists none.

    A field that this version does not know is left out of the question and so not reported.
    """
    fields = list(QUERY_FIELDS)
    while fields:
        query = (program, f"--query-gpu={','.join(fields)}", "--format=csv")
        run = run_tool(query, NVIDIA_SMI_LIMIT_S)
        refused = refused_field(run.stdout)
        if refused not in fields:
            break
        fields.remove(refused)
    reading = parse_query(run.stdout) if run.succeeded else None
    if reading is None:
        return None
    listing = run_tool((program, "-L"), NVIDIA_SMI_LIMIT_S)
    return with_mig_devices(reading, parse_list(listing.stdout))


def refused_field(text: str) -> str | None:
    """Return the field an older nvidia-smi complains of, None where it does not complain."""
    match = re.match(r'Field "([^"]+)" is not a valid field to query', text.strip())
    return match[1] if match else None


def parse_query(text: str) -> NvidiaReading | None:
    """Parse `nvidia-smi --query-gpu=... --format=csv` with its header line.

    The header names the columns and their units, so any selection in any order will do. None
    without a GPU name in it. "[N/A]" and "[Not Supported]" are not reported.
    """
    lines = text.strip().splitlines()
    if not lines:
        return None
    columns = [re.sub(r" \[.*\]$", "", column.strip()) for column in lines[0].split(",")]
    rows = [
        dict(zip(columns, (_reported(cell) for cell in cells), strict=False))
        for cells in csv.reader(lines[1:], skipinitialspace=True)
    ]
    gpus = tuple(_gpu(name, row) for row in rows if (name := row.get("name")))
    if not gpus:
        return None
    return NvidiaReading(rows[0].get("driver_version"), gpus)


def parse_list(text: str) -> list[list[NvidiaGpu]]:
    """Parse `nvidia-smi -L` into each GPU's MIG devices; an unpartitioned GPU has none."""
    gpus: list[list[NvidiaGpu]] = []
    parent = ""
    for line in text.splitlines():
        if match := re.match(r"GPU \d+: (.+?) \(UUID: ", line):
            parent = match[1]
            gpus.append([])
        elif gpus and (match := re.match(r"\s+(MIG \S+)\s+Device\s+\d+: \(UUID: (\S+)\)", line)):
            gpus[-1].append(NvidiaGpu(f"{parent} {match[1]}", match[2]))
    return gpus


def with_mig_devices(reading: NvidiaReading, listing: list[list[NvidiaGpu]]) -> NvidiaReading:
    """Replace each partitioned GPU by its MIG devices.

    nvidia-smi tells neither their memory nor their use: both stay not reported.
    """
    if len(listing) != len(reading.gpus):
        return reading
    gpus: list[NvidiaGpu] = []
    for gpu, partitions in zip(reading.gpus, listing, strict=True):
        shared = replace(gpu, memory_bytes=None, memory_used_bytes=None, busy_share=None)
        named = [replace(shared, name=device.name, uuid=device.uuid) for device in partitions]
        gpus += named or [gpu]
    return replace(reading, gpus=tuple(gpus))


def _gpu(name: str, row: dict[str, str | None]) -> NvidiaGpu:
    busy_percent = _number(row.get("utilization.gpu"), " %")
    return NvidiaGpu(
        name=name,
        uuid=row.get("uuid"),
        memory_bytes=_bytes(row.get("memory.total")),
        compute_capability=row.get("compute_cap"),
        temperature_c=_number(row.get("temperature.gpu")),
        throttle_reasons=throttle_reasons(_bits(row.get("clocks_throttle_reasons.active"))),
        memory_used_bytes=_bytes(row.get("memory.used")),
        busy_share=None if busy_percent is None else busy_percent / 100,
    )


def _reported(cell: str) -> str | None:
    value = cell.strip()
    return None if not value or value.startswith("[") or value == "N/A" else value


def _number(cell: str | None, unit: str = "") -> int | None:
    digits = (cell or "").removesuffix(unit)
    return int(digits) if digits.isdigit() else None


def _bytes(cell: str | None) -> int | None:
    mebibytes = _number(cell, " MiB")
    return None if mebibytes is None else mebibytes * MIB


def _bits(cell: str | None) -> int | None:
    try:
        return int(cell or "", 16)
    except ValueError:
        return None
