"""What the comparisons share: one calibration pair, one build, the same threads on both sides."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from farm import paths
from farm.builds.tools import ToolBuild
from farm.domain.decoding import Sampling, Settings, Speculation, SpeculationKind
from farm.domain.engines import IN_PROCESS
from farm.domain.job import Arm, JobSpec, ModelRef
from farm.domain.measurement import Sample
from farm.gguf.calibration import Law, calibration_prompt, law_of, make_pair
from farm.gguf.header import read_header
from worker.engines.contract import Engine, PreparedPrompt
from worker.engines.in_process import InProcessFactory
from worker.engines.registry import ENGINES

CATEGORY = "code-completion"
CONTEXT_TOKENS = 512
LIMIT_S = 600.0


def demo_pair() -> tuple[Path, Path]:
    """Return a pair small enough that what an engine adds to a pass shows."""
    return make_pair("demo", "f16", paths.cache() / "calibration")


@dataclass(frozen=True)
class Rig:
    """How to measure, and with what. pair: target and draft, a calibration pair. folder: for logs
    and databases. is_quick: fewer rounds and tokens."""

    threads: int
    is_quick: bool
    tools: ToolBuild
    folder: Path
    pair: tuple[Path, Path]

    @property
    def rounds(self) -> int:
        """Return how often each arm of a comparison is measured."""
        return 3 if self.is_quick else 11

    @property
    def tokens(self) -> int:
        """Return how many tokens a run decodes after its first."""
        return 96 if self.is_quick else 160

    @cached_property
    def law(self) -> Law:
        """Return the pair's law."""
        return law_of(read_header(self.pair[0]))

    def spec(self, n_max: int, tokens: int, engine: str = IN_PROCESS) -> JobSpec:
        """Return a job that decodes `tokens` after the first, at temperature 0."""
        target, draft = self.pair
        build = InProcessFactory().builds()[0] if engine == IN_PROCESS else self.tools.name
        return JobSpec(
            machine="any",
            engine=engine,
            build=build,
            target=ModelRef(str(target), "", target.stem),
            draft=ModelRef(str(draft), "", draft.stem),
            speculation=Speculation(SpeculationKind.DRAFT_SIMPLE, n_max=n_max),
            sampling=Sampling(0.0, 0),
            settings=Settings(context_tokens=CONTEXT_TOKENS, threads=self.threads),
            category=CATEGORY,
            prompts=("bench",),
            generate_tokens=tokens + 1,
            repeats=1,
        )

    @contextmanager
    def loaded(self, spec: JobSpec) -> Iterator[Engine]:
        """Load the pair in the job's engine, and free it."""
        log = self.folder / f"{spec.engine}.log"
        engine = ENGINES[spec.engine].load(spec, *self.pair, log, time.monotonic() + LIMIT_S)
        try:
            yield engine
        finally:
            engine.end()

    def prompt(self, text: str = "") -> str:
        """Return a prompt that puts both models in a known state."""
        return calibration_prompt(self.law, CATEGORY, text)


def run(engine: Engine, spec: JobSpec, prompt: str) -> dict[Arm, Sample]:
    """Run a job's one prompt; return the sample of each arm."""
    prompts = [PreparedPrompt("bench", prompt)]
    samples = engine.run(spec, prompts, time.monotonic() + LIMIT_S)
    return {sample.arm: sample for sample in samples if sample is not None}


def speed(sample: Sample) -> float:
    """Return decode tok/s of a run that decoded something."""
    assert sample.decode_tok_s is not None
    return sample.decode_tok_s
