"""What the farm adds around a job that decodes for a minute, on the worker's own path.

A real worker's executor on SQLite, two jobs of one pair. The first is short: it loads the models,
makes the contexts and warms up, which any measurement has to do once per pair; shown, not judged.
The second finds the pair loaded and warm, as most jobs of a sweep do. From before its claim to
after the commit that finishes it, less the time that its samples say was spent in passes over
prompts and in decoding, is what the farm adds: claiming, looking at the models' digests, reading
the environment before and after, storing samples, and in the child whatever is not decoding
(tokenising, comparing outputs, walking a divergence again). The child decodes on while a sample is
stored, so that its own term comes out too small by that, below 0 at times; the sum does not.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from farm.domain.measurement import Sample
from farm.errors import BenchmarkError
from farm.services.plan import plan_sweep
from farm.services.submit import submit
from farm.store import jobs
from tests.bench.rig import CATEGORY, LIMIT_S, Rig, run
from tests.bench.timing import Figure
from tests.worker.small_farm import SmallFarm
from worker import execute
from worker.engines.in_process import InProcessEngine
from worker.execute import Executor

BAR_PERCENT = 1.0
JOB_S, QUICK_JOB_S = 60.0, 10.0
PROMPTS = 2
TOKENS = 256
CONTEXT_TOKENS = 1024

SWEEP = """\
name: overhead
pairs: [{{target: target.gguf, drafts: [draft.gguf]}}]
k: 4
temperatures: 0
prompts: {{set: standard, categories: [{category}], per_category: {prompts}}}
generate_tokens: {tokens}
repeats: {repeats}
context_tokens: {context}
threads: {threads}
"""


@dataclass
class Job:
    """One job's wall time in seconds by where it was spent, and what it measured."""

    spent_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    samples: list[Sample] = field(default_factory=list)

    @property
    def wall_s(self) -> float:
        """Return the time from before the claim to after the last commit."""
        return sum(self.spent_s.values())

    @property
    def decoding_s(self) -> float:
        """Return the time in passes over prompts and in decoding, by the samples' own word."""
        times = [(s.prompt_ms, s.draft_prompt_ms or 0.0, s.decode_ms) for s in self.samples]
        return sum(map(sum, times)) / 1e3


def measure(rig: Rig) -> list[Figure]:
    """Return the farm's share of the second job, and what the first one took before decoding."""
    wanted_s = QUICK_JOB_S if rig.is_quick else JOB_S
    farm = SmallFarm.create(rig.folder, rig.pair)
    try:
        _submit(farm, rig, prompts=1, tokens=TOKENS, repeats=1)
        _submit(farm, rig, PROMPTS, TOKENS, math.ceil(wanted_s / (PROMPTS * _pair_s(rig))))
        with _watched() as done:
            farm.executor(job_timeout_s=LIMIT_S).work_off()
        if farm.states() != ["done", "done"]:
            raise BenchmarkError("crashed", f"The jobs ended as {farm.states()}.")
    finally:
        farm.close()
    cold, warm = done
    return [_overhead(warm, rig), _start(cold, warm)]


def _overhead(job: Job, rig: Rig) -> Figure:
    terms = {**job.spent_s, "child, not decoding": job.spent_s["engine"] - job.decoding_s}
    del terms["engine"]
    parts = ", ".join(f"{name} {spent_s * 1e3:.0f}" for name, spent_s in terms.items())
    diverged = sum(sample.first_divergence is not None for sample in job.samples)
    detail = f"{job.wall_s:.1f} s, {len(job.samples)} samples, {diverged} diverged; ms: {parts}"
    share = (job.wall_s - job.decoding_s) / job.wall_s * 100
    bar = None if rig.is_quick else BAR_PERCENT
    return Figure("farm's share of a job, pair loaded", share, "%", detail, at_most=bar)


def _start(cold: Job, warm: Job) -> Figure:
    start_s = cold.wall_s - cold.decoding_s
    share = start_s / (start_s + warm.wall_s) * 100
    detail = (
        f"of that job too, were it the pair's first: {start_s:.2f} s before and around decoding"
    )
    return Figure("load, contexts, warm-up", share, "%", detail)


def _submit(farm: SmallFarm, rig: Rig, prompts: int, tokens: int, repeats: int) -> None:
    sweep = farm.folder / "sweep.yaml"
    sweep.write_text(
        SWEEP.format(
            category=CATEGORY,
            prompts=prompts,
            tokens=tokens,
            repeats=repeats,
            context=CONTEXT_TOKENS,
            threads=rig.threads,
        )
    )
    submit(farm.database, plan_sweep(sweep))


def _pair_s(rig: Rig) -> float:
    """Return about how long both arms of one prompt take."""
    spec = rig.spec(n_max=4, tokens=TOKENS - 1)
    with rig.loaded(spec) as engine:
        return sum(sample.decode_ms for sample in run(engine, spec, rig.prompt()).values()) / 1e3


@contextmanager
def _watched() -> Iterator[list[Job]]:
    """Note where each job's time goes; a step inside another counts for itself alone."""
    done: list[Job] = []
    current = Job()
    inner = [0.0]

    def timed(term: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            inner.append(0.0)
            start = time.perf_counter()
            try:
                return call(*arguments, **options)
            finally:
                took = time.perf_counter() - start
                current.spent_s[term] += took - inner.pop()
                inner[-1] += took

        return step

    def claimed(*arguments: Any) -> Any:
        nonlocal current
        current = Job()
        return timed("claim", claim)(*arguments)

    def noted(self: InProcessEngine, *arguments: Any) -> Iterator[Any]:
        samples = decode(self, *arguments)
        following = timed("engine", lambda: next(samples, done))
        while (sample := following()) is not done:
            if sample is not None:
                current.samples.append(sample)
            yield sample

    def executed(self: Executor, claim: jobs.Claim) -> None:
        timed("other", whole)(self, claim)
        done.append(current)

    claim, whole, decode = Executor._claim, Executor._execute, InProcessEngine.run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Executor, "_claim", claimed)
        patch.setattr(Executor, "_execute", executed)
        patch.setattr(InProcessEngine, "run", noted)
        for owner, name, term in (
            (Executor, "_loaded", "load"),
            (Executor, "_store", "store"),
            (Executor, "_prompts", "prompts"),
            (execute, "pair_in_files", "digests"),
            (execute, "read_environment", "environment"),
            (jobs, "finish", "finish"),
        ):
            patch.setattr(owner, name, timed(term, getattr(owner, name)))
        yield done
