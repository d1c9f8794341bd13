"""The in-process engine against llama-server, both arms, through the farm's own engines.

The same pair, prompt, K, threads, context and greedy sampling. Decode time is what a sample says:
it starts when the first token is there, in both.
"""

from __future__ import annotations

from farm.domain.engines import IN_PROCESS, LLAMA_SERVER
from farm.domain.job import Arm
from tests.bench.rig import Rig, run, speed
from tests.bench.timing import Figure, interleave, paired_ratio

BAR = 1.0
K = 8


def measure(rig: Rig) -> list[Figure]:
    """Return the ratio of the two speeds for each arm."""
    ours, theirs = (rig.spec(K, rig.tokens, engine) for engine in (IN_PROCESS, LLAMA_SERVER))
    with rig.loaded(ours) as engine, rig.loaded(theirs) as server:
        readings = interleave(
            {
                "ours": lambda: run(engine, ours, rig.prompt()),
                "theirs": lambda: run(server, theirs, rig.prompt()),
            },
            rig.rounds,
        )
    names = {Arm.BASELINE: "baseline", Arm.SPECULATIVE: f"K={K}"}
    return [
        paired_ratio(
            f"in-process {name} / llama-server",
            *([speed(samples[arm]) for samples in runs] for runs in readings.values()),
            "tok/s",
            BAR,
        )
        for arm, name in names.items()
    ]
