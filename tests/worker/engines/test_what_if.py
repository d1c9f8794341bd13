"""A made-up acceptance on a real llama-server: as often as it was told, and never a measurement."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from engine_contract import CATEGORY, TEXTS, Load, measured, of_arm

from farm.domain.decoding import (
    AcceptRule,
    Sampling,
    WhatIf,
)
from farm.domain.job import Arm, JobSpec
from farm.domain.measurement import Parity, Sample
from farm.gguf.calibration import Law, start_state
from worker.engines.contract import PreparedPrompt

K = 4
TOKENS = 600
# Standard deviations of a count; the draws are seeded, so a count is the same every time.
SIGMAS = 5

Run = Callable[[JobSpec], list[Sample]]


@pytest.fixture
def spec(spec: JobSpec) -> JobSpec:
    return replace(spec, generate_tokens=TOKENS)


@pytest.fixture
def run(load: Load, prompts: list[PreparedPrompt]) -> Run:
    return lambda job: measured(load(job), job, prompts)


def under(spec: JobSpec, what_if: WhatIf) -> JobSpec:
    return replace(spec, speculation=replace(spec.speculation, what_if=what_if))


def counts(samples: list[Sample]) -> tuple[int, list[int]]:
    """Return rounds, and rounds accepted up to each position."""
    speculative = of_arm(samples, Arm.SPECULATIVE)
    positions = [sample.accepted_per_position or () for sample in speculative]
    return sum(s.rounds or 0 for s in speculative), [sum(at) for at in zip(*positions, strict=True)]


def close(count: int, rounds: int, rate: float) -> bool:
    # Each text's last round may be too short for a position.
    return abs(count - rounds * rate) <= SIGMAS * math.sqrt(rounds * rate * (1 - rate)) + len(TEXTS)


def test_the_pairs_own_rates_give_its_own_acceptance(spec: JobSpec, run: Run, law: Law) -> None:
    """Made up as the law has it, drafting pays as it does in truth; the text is another one."""
    real = [
        law.greedy_rounds(start_state(law, CATEGORY, text, index), TOKENS, K)
        for index, text in enumerate(TEXTS)
    ]
    passes = sum(rounds.target_passes for rounds in real)
    rates = tuple(
        sum(at) / passes for at in zip(*(r.accepted_per_position for r in real), strict=True)
    )
    samples = run(under(spec, WhatIf(rates)))
    rounds, accepted = counts(samples)
    for position, rate in enumerate(rates):
        assert close(accepted[position], rounds, rate)
    drafted = sum(s.drafted or 0 for s in of_arm(samples, Arm.SPECULATIVE))
    share = sum(r.accepted for r in real) / sum(r.drafted for r in real)
    assert sum(accepted) / drafted == pytest.approx(share, abs=0.05)
    for index, text in enumerate(TEXTS):
        walk = law.greedy_walk(start_state(law, CATEGORY, text, index), TOKENS)
        of_text = {s.arm: s for s in samples if s.prompt_digest == text}
        assert of_text[Arm.BASELINE].output_ids == walk != of_text[Arm.SPECULATIVE].output_ids


@pytest.mark.parametrize(("length", "rate"), [(1.0, 0.0), (K + 1.0, 1.0)])
def test_a_length_reaches_from_nothing_to_everything(
    spec: JobSpec, run: Run, length: float, rate: float
) -> None:
    rounds, accepted = counts(run(under(spec, WhatIf(length=length))))
    assert rounds
    assert all(close(count, rounds, rate) for count in accepted)


@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_its_text_is_never_called_valid(
    spec: JobSpec, run: Run, temperature: float, at_once: int
) -> None:
    """Not even where nothing was accepted that the target would not have drawn."""
    job = under(spec, WhatIf((0.0,) * K))
    rule = AcceptRule.MATCH if temperature else AcceptRule.EXACT
    job = replace(
        job,
        speculation=replace(job.speculation, accept=rule),
        sampling=Sampling(temperature, 3),
        settings=replace(job.settings, concurrent_requests=at_once),
        generate_tokens=24,
    )
    samples = run(job)
    assert {s.parity for s in of_arm(samples, Arm.SPECULATIVE)} == {Parity.NOT_VALID}
    assert {s.parity for s in of_arm(samples, Arm.BASELINE)} == {Parity.NOT_COMPARED}
    assert {s.first_divergence for s in samples} == {s.margin_logits for s in samples} == {None}
