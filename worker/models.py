"""Finding a job's model files on this machine, and making sure they are the ones meant."""

from __future__ import annotations

import glob
from pathlib import Path

from farm.domain.job import JobSpec, ModelRef
from farm.errors import BenchmarkError, UserError
from farm.gguf.header import read_header
from farm.gguf.identity import digest_of
from farm.gguf.memory import memory_need_bytes
from worker.probe.memory import available_memory_bytes
from worker.probe.nvidia import read_nvidia

GIB = 1024**3


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
    settings = spec.settings
    kinds = (settings.context_tokens, settings.cache_type_k, settings.cache_type_v)
    try:
        headers = [read_header(path) for path in (target, draft) if path is not None]
        need, *others = (memory_need_bytes(header, *kinds) for header in headers)
    except UserError as error:
        raise BenchmarkError("load-failed", str(error)) from None
    reading = read_nvidia() if settings.gpu_layers != 0 else None
    if reading is not None and reading.gpus:
        free = [
            gpu.memory_bytes - gpu.memory_used_bytes
            for gpu in reading.gpus
            if gpu.memory_bytes is not None and gpu.memory_used_bytes is not None
        ]
        return len(free) == len(reading.gpus) and 2 * need + sum(others) <= sum(free)
    shared = headers[0].tensor_bytes
    available = available_memory_bytes()
    return available is None or 2 * need - shared + sum(others) <= available


def require_memory(spec: JobSpec, target: Path, draft: Path | None, *, has_gpu: bool) -> None:
    """Raise BenchmarkError "too-little-memory" where the pair would not fit beside what runs.

    On a machine with its own GPU memory llama.cpp puts the weights there unless told otherwise;
    then it is llama.cpp that says whether they fit.
    """
    if has_gpu and spec.settings.gpu_layers != 0:
        return
    settings = spec.settings
    try:
        need = sum(
            memory_need_bytes(
                read_header(path),
                settings.context_tokens,
                settings.cache_type_k,
                settings.cache_type_v,
            )
            for path in (target, draft)
            if path is not None
        )
    except UserError as error:
        raise BenchmarkError("load-failed", str(error)) from None
    available = available_memory_bytes()
    if available is not None and need > available:
        raise BenchmarkError(
            "too-little-memory",
            f"The pair needs about {need / GIB:.1f} GiB and {available / GIB:.1f} GiB are free; "
            "close other programs, use a smaller context or a smaller model.",
        )
