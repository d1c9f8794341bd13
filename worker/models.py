"""Finding a job's model files on this machine, and making sure they are the ones meant."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path

from farm.domain.decoding import Settings
from farm.domain.engines import EXPERTS_KEY
from farm.domain.job import JobSpec, ModelRef
from farm.errors import BenchmarkError, UserError
from farm.gguf.calibration import Law, is_calibration, law_of
from farm.gguf.header import Header, read_header
from farm.gguf.identity import digest_of
from farm.gguf.memory import pair_need_bytes
from worker.probe.memory import available_memory_bytes
from worker.probe.nvidia import read_nvidia

GIB = 1024**3


@dataclass(frozen=True)
class PairHere:
    """A job's models as this machine has them. header: the target's, None where it has no file.
    law: what a calibration pair follows."""

    target: Path
    draft: Path | None
    header: Header | None
    law: Law | None


def pair_in_files(spec: JobSpec, models_folder: Path | None) -> PairHere:
    """Find a job's files. Raises BenchmarkError as `locate`, UserError where one can't be read."""
    target = locate(spec.target, models_folder)
    draft = locate(spec.draft, models_folder) if spec.draft else None
    header = read_header(target)
    return PairHere(target, draft, header, law_of(header) if is_calibration(header) else None)


def pair_elsewhere(spec: JobSpec) -> PairHere:
    """Return the pair of a job whose models a server has: nothing of it lies here."""
    return PairHere(Path(spec.target.path), None, None, None)


def locate(model: ModelRef, models_folder: Path | None) -> Path:
    """Return the file with the model's digest: at its own path, else by name in the folder.

    Raises BenchmarkError "model-missing" where no such file is here, "model-changed" where one
    is but its content differs from what was submitted.
    """
    candidates = [Path(model.path)]
    if models_folder is not None:
        candidates += sorted(models_folder.rglob(glob.escape(Path(model.path).name)))
    present = [path for path in candidates if path.is_file()]
    for path in present:
        if digest_of(path) == model.digest:
            return path
    name = Path(model.path).name
    if present:
        raise BenchmarkError(
            "model-changed",
            f"{present[0]} is not the file that was submitted (sha256 {model.digest[:12]}...); "
            "submit the sweep again to measure the new one.",
        )
    where = f" or in {models_folder}" if models_folder else "; set FARM_MODELS to its folder here"
    raise BenchmarkError("model-missing", f"{name} is neither at {model.path}{where}.")


def fits_twice(spec: JobSpec, target: Path, draft: Path | None) -> bool:
    """Say whether the target can be loaded a second time beside the pair.

    In main memory a second copy shares the file's pages and costs its cache and buffers only. In
    a GPU's own memory it costs everything again; where that can't be read, the answer is no.
    """
    need, *others = _need_bytes(spec, target, draft)
    reading = read_nvidia() if spec.settings.gpu_layers != 0 else None
    if reading is not None and reading.gpus:
        free = [
            gpu.memory_bytes - gpu.memory_used_bytes
            for gpu in reading.gpus
            if gpu.memory_bytes is not None and gpu.memory_used_bytes is not None
        ]
        return len(free) == len(reading.gpus) and 2 * need + sum(others) <= sum(free)
    shared = read_header(target).tensor_bytes
    available = available_memory_bytes()
    return available is None or 2 * need - shared + sum(others) <= available


def require_memory(spec: JobSpec, target: Path, draft: Path | None, *, has_gpu: bool) -> None:
    """Raise BenchmarkError "too-little-memory" where the pair would not fit beside what runs.

    On a machine with its own GPU memory llama.cpp puts the weights there unless told otherwise;
    then it is llama.cpp that says whether they fit.
    """
    if has_gpu and spec.settings.gpu_layers != 0:
        return
    need = sum(_need_bytes(spec, target, draft))
    available = available_memory_bytes()
    if available is not None and need > available:
        raise BenchmarkError(
            "too-little-memory",
            f"The pair needs about {need / GIB:.1f} GiB and {available / GIB:.1f} GiB are free; "
            "close other programs, use a smaller context or a smaller model.",
        )


def overrides(settings: Settings, target: Path) -> dict[str, int]:
    """Return the numbers of the target's metadata that its settings put others for."""
    if settings.experts_used is None:
        return {}
    try:
        architecture = read_header(target).architecture
    except UserError as error:
        raise BenchmarkError("load-failed", str(error)) from None
    return {f"{architecture}.{EXPERTS_KEY}": settings.experts_used}


def _need_bytes(spec: JobSpec, target: Path, draft: Path | None) -> tuple[int, ...]:
    try:
        headers = read_header(target), read_header(draft) if draft else None
        return pair_need_bytes(spec.settings, *headers)
    except UserError as error:
        raise BenchmarkError("load-failed", str(error)) from None
