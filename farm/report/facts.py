"""Facts of machines and runs as rows to read: key -> name and unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from farm.domain.hardware import GIB
from farm.report.wording import NOT_MEASURED, plain
from farm.store.queries import MachineSummary


def _gib(value: Any) -> str:
    return f"{value / GIB:.1f} GiB"


def _gpu(gpu: Mapping[str, Any]) -> str:
    parts = [str(gpu.get("name", "GPU"))]
    if gpu.get("memory_bytes"):
        parts.append(_gib(gpu["memory_bytes"]))
    if gpu.get("compute_capability"):
        parts.append(f"compute capability {gpu['compute_capability']}")
    return ", ".join(parts)


def _gpus(value: Sequence[Mapping[str, Any]]) -> str:
    return "; ".join(_gpu(gpu) for gpu in value) or "none"


HARDWARE_FACTS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "kind": ("Decodes on", str),
    "cpu_model": ("CPU", str),
    "physical_cores": ("Physical cores", str),
    "logical_cores": ("Logical cores", str),
    "memory_bytes": ("Memory", _gib),
    "gpus": ("GPUs", _gpus),
    "arch": ("Architecture", str),
    "os": ("Operating system", str),
}


def machine_facts(machine: MachineSummary) -> list[tuple[str, str]]:
    """Return a machine's hardware, engines and builds; facts this code has no name for included."""
    return [
        *hardware_rows(machine.facts),
        ("Engines", ", ".join(map(plain, machine.engines)) or "none"),
        ("Builds", ", ".join(map(plain, machine.builds)) or "none"),
    ]


def hardware_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return hardware facts in reading order, the known ones with their units."""
    rows = [
        (name, NOT_MEASURED if facts[key] is None else plain(show(facts[key])))
        for key, (name, show) in HARDWARE_FACTS.items()
        if key in facts
    ]
    return rows + fact_rows({key: facts[key] for key in facts if key not in HARDWARE_FACTS})


def fact_rows(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested facts as flat (dotted key, value) rows."""
    rows: list[tuple[str, str]] = []
    for key, value in facts.items():
        if isinstance(value, Mapping):
            rows += fact_rows(value, f"{prefix}{key}.")
        else:
            rows.append((plain(f"{prefix}{key}"), _value_text(value)))
    return rows


def _value_text(value: Any) -> str:
    if value is None:
        return NOT_MEASURED
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_value_text, value)) or "none"
    return plain(str(value))
