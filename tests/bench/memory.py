"""What the child holds in memory beyond the models and the KV caches that a job asks for.

Its peak, less the pages of the model files that are in memory, the weights that llama.cpp keeps a
second time in another order, and the KV caches, as its log states them. What remains is Python,
numpy, llama.cpp's code, its tables of tokens, logits, and what was touched of the compute buffers.
Those are shown as the log states them, and not taken off: most of what is reserved is never used.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from farm.domain.job import Arm
from tests.bench.rig import Rig, run
from tests.bench.timing import Figure
from tests.bench.vocabulary import large_pair
from worker.engines.in_process import InProcessEngine

BAR_MB = 150.0
K = 16
MB, MIB = 1e6, 1024 * 1024
MAPPED = "CPU_Mapped"

_BUFFER = re.compile(r"(KV|compute|output) +buffer size = +([\d.]+) MiB")
_MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ ")
_MODEL = re.compile(r"(\S+) +model buffer size = +([\d.]+) MiB")


def measure(rig: Rig) -> list[Figure]:
    """Return megabytes beyond the models, with a small vocabulary and with one of 152k tokens."""
    large = replace(rig, pair=large_pair())
    return [_beyond("a small vocabulary", rig), _beyond("152k tokens", large)]


def _beyond(name: str, rig: Rig) -> Figure:
    spec = rig.spec(K, tokens=32)
    with rig.loaded(spec) as engine:
        assert isinstance(engine, InProcessEngine)
        peak = run(engine, spec, rig.prompt())[Arm.SPECULATIVE].peak_rss_bytes
        assert peak is not None
        mapped = _resident_bytes(engine, rig.pair)
        log = (rig.folder / f"{spec.engine}.log").read_text(errors="replace")
    repacked = MIB * sum(float(size) for kind, size in _MODEL.findall(log) if kind != MAPPED)
    parts = {kind: MIB * sum(map(float, found)) for kind, found in _by_kind(log).items()}
    beyond = peak - mapped - repacked - parts["KV"]
    sizes = {"models": mapped + repacked, **parts}
    detail = f"peak {peak / MB:.0f}; " + ", ".join(
        f"{part} {size / MB:.0f}" for part, size in sizes.items()
    )
    return Figure(f"memory beyond the models, {name}", beyond / MB, "MB", detail, at_most=BAR_MB)


def _by_kind(log: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for kind, size in _BUFFER.findall(log):
        found.setdefault(kind, []).append(size)
    return found


def _resident_bytes(engine: InProcessEngine, pair: tuple[Path, Path]) -> int:
    """Return how much of the mapped model files is in the child's memory (Linux), their size
    elsewhere: llama.cpp reads them in whole."""
    smaps = Path(f"/proc/{engine._child.pid}/smaps")
    if not smaps.exists():
        return sum(path.stat().st_size for path in pair)
    resident, is_model = 0, False
    for line in smaps.read_text().splitlines():
        if _MAPPING.match(line):
            is_model = any(line.endswith(str(path)) for path in pair)
        elif is_model and line.startswith("Rss:"):
            resident += int(line.split()[1]) * 1024
    return resident
