"""Recommendations from the stored samples: one per machine, pair, content and temperature."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy.orm import Session

from farm.domain.decoding import Settings, Speculation
from farm.domain.engines import LLAMA_SERVER
from farm.domain.job import Arm, JobSpec
from farm.domain.measurement import Parity
from farm.domain.prompt import Category
from farm.domain.provenance import Conditions
from farm.science.paired import Interval
from farm.science.parity import Cause, explain
from farm.science.recommendation import Candidate, Verdict, advise
from farm.store.attempts import job_checks, job_conditions
from farm.store.queries import MeasuredSample, measured_samples

CALIBRATION_NOTE = "calibration pair: a known law at a real shape's cost, not a language model"


@dataclass(frozen=True)
class Setup:
    """What is held fixed within one recommendation: samples of different setups never mix.

    Models count by digest: files of equal names in two folders are two models. conditions: None for
    what was measured before they were recorded. prompts: digest of which prompts. made_up: the
    acceptance was (`Speculation.what_if`).
    """

    machine: str
    hardware: str
    target: str
    draft: str | None
    kind: str
    is_calibration: bool
    category: str
    temperature: float
    engine: str
    build: str
    build_digest: str | None
    settings: Settings
    generate_tokens: int
    target_digest: str = ""
    draft_digest: str | None = None
    architecture: str = ""
    conditions: Conditions | None = None
    prompts: str = ""
    prompt_count: int = 0
    made_up: bool = False


@dataclass(frozen=True)
class CurvePoint:
    """One configuration measured under a setup, by the jobs of these ids.

    speedup: simultaneous 95 % interval, None under 3 prompts. Rates are totals over the samples;
    None where nothing was drafted or decoded, or the engine does not report it. *_tok_s is what one
    user sees; server_*_tok_s is all users' together, None where there is but one. causes: what the
    control says (`farm.science.parity.Cause`) of each finding but exact, counted. law_checks: per
    job on a calibration pair above temperature 0, tokens and p-value by arm, of llama-server's one
    text for both arms the speculative one's alone.
    """

    speculation: Speculation
    prompts: int
    speedup: Interval | None
    baseline_tok_s: float | None
    speculative_tok_s: float | None
    acceptance_rate: float | None
    tokens_per_round: float | None
    parity: dict[str, int]
    jobs: tuple[int, ...] = ()
    server_baseline_tok_s: float | None = None
    server_speculative_tok_s: float | None = None
    causes: dict[str, dict[str, int]] = field(default_factory=dict)
    law_checks: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class WhatIfCurve:
    """What made-up acceptances are worth under one setup: the speeds are real, the texts are not
    the target's, and no advice rests on it."""

    setup: Setup
    curve: tuple[CurvePoint, ...]


@dataclass(frozen=True)
class Recommendation:
    """Advice for one setup. best is what to use, or with verdict off what came closest.

    unmodified_parity: where the settings are lossy, prompts by how the baseline's text compares
    with the unmodified target's; empty where that was not measured.
    """

    setup: Setup
    verdict: Verdict
    reason: str
    best: CurvePoint | None
    as_good: tuple[CurvePoint, ...]
    curve: tuple[CurvePoint, ...]
    unmodified_parity: dict[str, int] = field(default_factory=dict)

    def to_payload(self) -> dict[str, Any]:
        """Return the recommendation as JSON types. lossy: which settings change the output."""
        return asdict(self) | {"lossy": list(self.setup.settings.lossy)}


@dataclass(frozen=True)
class Findings:
    """What the samples say of every setup with finished jobs, in report order: advice, and apart
    from it what made-up acceptances gave."""

    recommendations: list[Recommendation]
    what_ifs: list[WhatIfCurve]


def findings(session: Session, sweep_id: int | None = None, job_id: int | None = None) -> Findings:
    """Judge every sample, or one sweep's or one job's when asked."""
    judged = _judged(session, sweep_id, job_id)
    return Findings(
        [found for found in judged if not found.setup.made_up],
        [WhatIfCurve(found.setup, found.curve) for found in judged if found.setup.made_up],
    )


def recommendations(session: Session, sweep_id: int | None = None) -> list[Recommendation]:
    """Return the advice alone; `findings` has both for one reading of the samples."""
    return findings(session, sweep_id).recommendations


def _judged(session: Session, sweep_id: int | None, job_id: int | None) -> list[Recommendation]:
    samples, specs = measured_samples(session, sweep_id, job_id)
    conditions = job_conditions(session, list(specs))
    checks = job_checks(session, list(specs))
    by_job: dict[int, list[MeasuredSample]] = defaultdict(list)
    for sample in samples:
        by_job[sample.job_id].append(sample)
    cells: dict[Setup, dict[Speculation, list[MeasuredSample]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for number, members in by_job.items():
        spec = specs[number]
        cells[_setup(members[0], spec, conditions.get(number))][spec.speculation] += members
    order = {category.value: index for index, category in enumerate(Category)}

    def position(setup: Setup) -> tuple[Any, ...]:
        place = order.get(setup.category, len(order))
        pair = (setup.machine, setup.target, setup.draft or "", setup.kind)
        settings = str(setup.settings)
        # What still ties stays in the order in which it was measured.
        return (*pair, setup.temperature, place, setup.category, settings, setup.prompt_count)

    return [_recommend(setup, cells[setup], checks) for setup in sorted(cells, key=position)]


def _setup(sample: MeasuredSample, spec: JobSpec, conditions: Conditions | None) -> Setup:
    return Setup(
        machine=sample.machine,
        hardware=conditions.hardware.label if conditions else sample.hardware,
        target=sample.target_name,
        draft=sample.draft_name,
        kind=spec.speculation.kind.value,
        is_calibration=sample.is_calibration,
        category=spec.category,
        temperature=spec.sampling.temperature,
        engine=spec.engine,
        build=spec.build,
        build_digest=sample.build_digest,
        settings=spec.settings,
        generate_tokens=spec.generate_tokens,
        target_digest=spec.target.digest,
        draft_digest=spec.draft.digest if spec.draft else None,
        architecture=sample.architecture,
        conditions=conditions,
        prompts=spec.prompts_digest,
        prompt_count=len(spec.prompts),
        made_up=spec.speculation.what_if is not None,
    )


def _recommend(
    setup: Setup,
    cells: dict[Speculation, list[MeasuredSample]],
    checks: dict[int, dict[str, Any]],
) -> Recommendation:
    speculations = sorted(
        cells, key=lambda spec: (spec.n_max, spec.p_min, spec.accept.value, str(spec.what_if))
    )
    advice = advise([_candidate(cells[speculation]) for speculation in speculations])
    curve = tuple(
        _point(setup, speculation, cells[speculation], interval, checks)
        for speculation, interval in zip(speculations, advice.speedups, strict=True)
    )
    return Recommendation(
        setup=setup,
        verdict=advice.verdict,
        reason=advice.reason,
        best=None if advice.best is None else curve[advice.best],
        as_good=tuple(curve[index] for index in advice.as_good),
        curve=curve,
        unmodified_parity=_unmodified_parity([run for runs in cells.values() for run in runs]),
    )


def _candidate(samples: Sequence[MeasuredSample]) -> Candidate:
    causes = _causes(samples).get(Parity.MISMATCH, {})
    known = causes.keys() - {Cause.UNKNOWN}
    return Candidate(
        tuple(_log_speedups(samples).values()),
        mismatches=sum(causes.values()),
        arithmetic=causes.get(Cause.ARITHMETIC, 0) if known else None,
    )


def _causes(samples: Sequence[MeasuredSample]) -> dict[str, dict[str, int]]:
    """Count the causes of speculative outputs that parted from the baseline's, by finding."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for sample in samples:
        if sample.arm == Arm.SPECULATIVE and sample.parity in (Parity.NEAR_TIE, Parity.MISMATCH):
            cause = explain(sample.emitted_token, sample.control_token)
            found[sample.parity][cause.value] += 1
    return {finding: dict(counts) for finding, counts in found.items()}


def _unmodified_parity(samples: Sequence[MeasuredSample]) -> dict[str, int]:
    """Count prompts by the worst finding of their baselines, which lossy settings alone have."""
    order = (Parity.EXACT, Parity.NEAR_TIE, Parity.MISMATCH)
    worst: dict[str, int] = {}
    for sample in samples:
        if sample.arm == Arm.BASELINE and sample.parity in order:
            rank = order.index(Parity(sample.parity))
            worst[sample.prompt_digest] = max(rank, worst.get(sample.prompt_digest, 0))
    return dict(Counter(order[rank].value for rank in worst.values()))


def _log_speedups(samples: Sequence[MeasuredSample]) -> dict[str, float]:
    """Return ln(speculative / baseline decode speed) per prompt, averaged over its repeats.

    A run pairs with the other arm's run of the same job, prompt and repeat: they lie next to
    each other in time. Runs that decoded nothing (the text ended at once) have no speed.
    """
    pairs: dict[tuple[int, str, int], dict[str, float]] = defaultdict(dict)
    for sample in samples:
        if sample.generated_tokens > 1 and sample.decode_ms > 0:
            speed = (sample.generated_tokens - 1) / sample.decode_ms
            pairs[sample.job_id, sample.prompt_digest, sample.repeat][sample.arm] = speed
    ratios: dict[str, list[float]] = defaultdict(list)
    for (_, prompt, _), speeds in pairs.items():
        if len(speeds) == len(Arm):
            ratios[prompt].append(math.log(speeds[Arm.SPECULATIVE] / speeds[Arm.BASELINE]))
    return {prompt: math.fsum(values) / len(values) for prompt, values in ratios.items()}


def _point(
    setup: Setup,
    speculation: Speculation,
    samples: Sequence[MeasuredSample],
    speedup: Interval | None,
    checks: dict[int, dict[str, Any]],
) -> CurvePoint:
    arms = {arm: [sample for sample in samples if sample.arm == arm] for arm in Arm}
    speculative = arms[Arm.SPECULATIVE]
    drafted = _total([sample.drafted for sample in speculative])
    accepted = _total([sample.accepted for sample in speculative])
    rounds = _total([sample.rounds for sample in speculative])
    at_once = setup.settings.concurrent_requests
    job_ids = tuple(sorted({sample.job_id for sample in samples}))
    return CurvePoint(
        speculation=speculation,
        prompts=len(_log_speedups(samples)),
        speedup=speedup,
        baseline_tok_s=_tok_s(arms[Arm.BASELINE]),
        speculative_tok_s=_tok_s(speculative),
        acceptance_rate=accepted / drafted if drafted and accepted is not None else None,
        tokens_per_round=1 + accepted / rounds if rounds and accepted is not None else None,
        parity=dict(Counter(sample.parity for sample in speculative)),
        jobs=job_ids,
        server_baseline_tok_s=_server_tok_s(arms[Arm.BASELINE], at_once),
        server_speculative_tok_s=_server_tok_s(speculative, at_once),
        causes=_causes(speculative),
        law_checks=tuple(
            _independent(checks[job_id]["law"], setup.engine)
            for job_id in job_ids
            if "law" in checks.get(job_id, {})
        ),
    )


def _independent(check: dict[str, Any], engine: str) -> dict[str, Any]:
    """Return the arms whose texts are drawn apart: llama-server's come from one seed."""
    return {Arm.SPECULATIVE.value: check[Arm.SPECULATIVE]} if engine == LLAMA_SERVER else check


def _total(counts: Sequence[int | None]) -> int | None:
    """Return the sum, None where one of them is not reported."""
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _tok_s(samples: Sequence[MeasuredSample]) -> float | None:
    decode_ms = math.fsum(sample.decode_ms for sample in samples)
    tokens = sum(max(sample.generated_tokens - 1, 0) for sample in samples)
    return tokens / decode_ms * 1000 if decode_ms > 0 else None


def _server_tok_s(samples: Sequence[MeasuredSample], at_once: int) -> float | None:
    """Return the tokens per second of all users together, by Little's law: with so many requests
    in flight all the time, throughput is their number over the mean time that one takes."""
    taken_ms = math.fsum(sample.prompt_ms + sample.decode_ms for sample in samples)
    if at_once == 1 or taken_ms <= 0:
        return None
    return at_once * sum(sample.generated_tokens for sample in samples) / taken_ms * 1000
