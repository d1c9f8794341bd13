"""The in-process baseline against llama-bench.

Both decode the same number of tokens one by one from an all but empty context, with the same
threads, batch sizes, cache types and flash attention (llama-bench's defaults: 512, f16, auto).
llama-bench feeds random tokens and looks at no logits; the engine picks the best of each. Ours
stands in a context of 512 tokens and theirs in one of as many as it decodes; llama.cpp looks at
256 cells at least and never at empty ones, so that the passes are the same.
"""

from __future__ import annotations

import json
import subprocess

from farm.domain.job import Arm
from farm.errors import BenchmarkError
from tests.bench.rig import Rig, run, speed
from tests.bench.timing import Figure, interleave, paired_ratio

BAR = 0.99


def measure(rig: Rig) -> list[Figure]:
    """Return the ratio of the two speeds."""
    spec = rig.spec(n_max=4, tokens=rig.tokens)
    with rig.loaded(spec) as engine:
        readings = interleave(
            {
                "ours": lambda: speed(run(engine, spec, rig.prompt())[Arm.BASELINE]),
                "theirs": lambda: _llama_bench(rig),
            },
            rig.rounds,
        )
    name = "in-process baseline / llama-bench"
    return [paired_ratio(name, readings["ours"], readings["theirs"], "tok/s", BAR)]


def _llama_bench(rig: Rig) -> float:
    command = [rig.tools.path("llama-bench"), "-m", rig.pair[0], "-p", "0", "-n", str(rig.tokens)]
    command += ["-r", "1", "-t", str(rig.threads), "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchmarkError("crashed", f"llama-bench failed:\n{done.stderr[-1000:]}")
    return float(json.loads(done.stdout)[0]["avg_ts"])
