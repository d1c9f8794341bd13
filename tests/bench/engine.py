"""The in-process engine's baseline against llama-bench, on one calibration pair.

Run with `make bench-engine`; llama-bench is taken from the PATH or from FARM_LLAMA_BENCH. Both
decode the same number of tokens from an all but empty context, in turns, in mirrored order.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from farm import paths
from farm.domain.decoding import Sampling, Settings, Speculation, SpeculationKind
from farm.domain.job import Arm, JobSpec, ModelRef
from farm.gguf.calibration import calibration_prompt, law_of, make_pair
from farm.gguf.header import read_header
from worker.engines.contract import Engine, PreparedPrompt
from worker.engines.in_process import InProcessFactory
from worker.probe.hardware import probe_hardware

ROUNDS = 10
TOKENS = 128
CATEGORY = "code-completion"
BAR = 0.99
LIMIT_S = 600.0


def main() -> None:
    """Print both engines' medians and the median of the pairwise ratios."""
    threads = probe_hardware().physical_cores
    target, draft = make_pair("demo", "f16", paths.cache() / "calibration")
    bench = os.environ.get("FARM_LLAMA_BENCH") or shutil.which("llama-bench")
    spec = JobSpec(
        machine="any",
        engine="in-process",
        build=InProcessFactory().builds()[0],
        target=ModelRef(str(target), "", target.stem),
        draft=ModelRef(str(draft), "", draft.stem),
        speculation=Speculation(SpeculationKind.DRAFT_SIMPLE, n_max=4),
        sampling=Sampling(0.0, 0),
        settings=Settings(context_tokens=512, threads=threads),
        category=CATEGORY,
        prompts=("bench",),
        generate_tokens=TOKENS,
        repeats=1,
    )
    prompt = calibration_prompt(law_of(read_header(target)), CATEGORY, "")
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "engine.log"
        engine = InProcessFactory().load(spec, target, draft, log, time.monotonic() + LIMIT_S)
        try:
            _report(
                lambda: _in_process(engine, spec, prompt),
                (lambda: _llama_bench(bench, target, threads)) if bench else None,
            )
        finally:
            engine.end()


def _report(
    in_process: Callable[[], dict[Arm, float]], llama_bench: Callable[[], float] | None
) -> None:
    plain, fast, reference = [], [], []
    for round_number in range(ROUNDS):
        if llama_bench and round_number % 2:
            reference.append(llama_bench())
        speeds = in_process()
        plain.append(speeds[Arm.BASELINE])
        fast.append(speeds[Arm.SPECULATIVE])
        if llama_bench and not round_number % 2:
            reference.append(llama_bench())
    print(f"{ROUNDS} interleaved rounds of {TOKENS} tokens, tok/s:")
    _line("in-process baseline", plain)
    _line("in-process K=4", fast)
    _ratio("speculative / baseline", fast, plain)
    if llama_bench is None:
        print("llama-bench is not on the PATH; name it in FARM_LLAMA_BENCH for the comparison.")
        return
    _line("llama-bench", reference)
    median = _ratio("in-process / llama-bench", plain, reference)
    print(f"bar: {BAR} or better: {'met' if median >= BAR else 'MISSED'}")


def _line(name: str, speeds: list[float]) -> None:
    low, high = min(speeds), max(speeds)
    print(f"  {name:26} median {statistics.median(speeds):7.2f}  ({low:.2f} to {high:.2f})")


def _ratio(name: str, above: list[float], below: list[float]) -> float:
    ratios = sorted(a / b for a, b in zip(above, below, strict=True))
    median = statistics.median(ratios)
    print(f"  {name:26} median {median:7.3f}  ({ratios[0]:.3f} to {ratios[-1]:.3f}), by pairs")
    return median


def _in_process(engine: Engine, spec: JobSpec, prompt: str) -> dict[Arm, float]:
    prompts = [PreparedPrompt("bench", prompt)]
    samples = [s for s in engine.run(spec, prompts, time.monotonic() + LIMIT_S) if s is not None]
    return {sample.arm: sample.decode_tok_s or 0.0 for sample in samples}


def _llama_bench(binary: str, target: Path, threads: int) -> float:
    command = [binary, "-m", str(target), "-p", "0", "-n", str(TOKENS), "-r", "1", "-o", "json"]
    done = subprocess.run(
        [*command, "-t", str(threads)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"{binary} failed:\n{done.stderr[-1000:]}")
    return float(json.loads(done.stdout)[0]["avg_ts"])


if __name__ == "__main__":
    main()
