"""Kinds whose draft is trained for its target, on drafts whose guesses are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from engine_contract import CATEGORY, TEXTS, Load, measured, of_arm
from trained_heads import TrainedHeads, untrained

from farm.domain.decoding import AcceptRule, Sampling, Speculation, SpeculationKind
from farm.domain.job import Arm, JobSpec, ModelRef
from farm.domain.measurement import Parity
from farm.gguf.calibration import Law, start_state
from worker.engines.contract import PreparedPrompt

WITH_A_FILE = ("draft-mtp-file", "draft-eagle3", "draft-dflash", "draft-dspark")
NAMES = ("draft-mtp", "draft-mtp-hybrid", *WITH_A_FILE)
SURE_ENOUGH = 0.6
# In llama.cpp 0c1e570, and not in every run; docs/engines.md has the figures.
WORSE_WITH_NEIGHBOURS = (SpeculationKind.DRAFT_EAGLE3, SpeculationKind.DRAFT_DSPARK)


def job_of(
    spec: JobSpec, heads: TrainedHeads, draft: Path | None, n_max: int, p_min: float = 0.0
) -> JobSpec:
    target, drafted = (
        ModelRef(str(path), path.name, path.stem) if path else None
        for path in (heads.target, draft)
    )
    assert target is not None
    speculation = Speculation(heads.kind, n_max, p_min=p_min)
    return replace(spec, target=target, draft=drafted, speculation=speculation)


@pytest.mark.parametrize("name", NAMES)
class TestTrainedHeads:
    @pytest.mark.parametrize(
        ("n_max", "p_min", "at_once"), [(3, 0.0, 1), (6, SURE_ENOUGH, 1), (3, 0.0, 4)]
    )
    def test_greedy_runs_do_what_the_heads_say(
        self,
        load: Load,
        spec: JobSpec,
        prompts: list[PreparedPrompt],
        law: Law,
        heads: dict[str, TrainedHeads],
        name: str,
        n_max: int,
        p_min: float,
        at_once: int,
    ) -> None:
        """Ids, drafted, accepted and rounds are equal, not just close: K and p_min are heeded."""
        own = heads[name]
        job = job_of(spec, own, own.draft, n_max, p_min)
        job = replace(job, settings=replace(job.settings, concurrent_requests=at_once))
        samples = measured(load(job), job, prompts)
        for index, text in enumerate(TEXTS):
            start = start_state(law, CATEGORY, text, index)
            expected = own.rounds(start, job.generate_tokens, n_max, p_min)
            plain, drafted = (
                next(s for s in of_arm(samples, arm) if s.prompt_digest == text) for arm in Arm
            )
            assert plain.output_ids == drafted.output_ids
            assert plain.output_ids == law.greedy_walk(start, job.generate_tokens)
            assert drafted.parity is Parity.EXACT
            if at_once > 1 and own.kind in WORSE_WITH_NEIGHBOURS:
                continue
            assert (drafted.drafted, drafted.accepted) == (expected.drafted, expected.accepted)
            if at_once == 1:
                assert drafted.rounds == expected.target_passes
                assert drafted.accepted_per_position == expected.accepted_per_position
            assert drafted.accepted > 0
            if p_min:
                assert drafted.drafted < own.rounds(start, job.generate_tokens, n_max).drafted

    def test_both_arms_draw_the_same_text_above_temperature_0(
        self,
        load: Load,
        spec: JobSpec,
        prompts: list[PreparedPrompt],
        heads: dict[str, TrainedHeads],
        name: str,
    ) -> None:
        own = heads[name]
        job = replace(job_of(spec, own, own.draft, 3), sampling=Sampling(0.8, 5))
        warm = replace(job, speculation=replace(job.speculation, accept=AcceptRule.MATCH))
        plain, drafted = (of_arm(measured(load(warm), warm, prompts), arm) for arm in Arm)
        assert [s.output_ids for s in plain] == [s.output_ids for s in drafted]
        assert all(sample.drafted > 0 for sample in drafted)


@pytest.mark.parametrize("name", WITH_A_FILE)
def test_an_untrained_head_is_measured_and_accepts_nothing(
    load: Load,
    spec: JobSpec,
    prompts: list[PreparedPrompt],
    law: Law,
    heads: dict[str, TrainedHeads],
    name: str,
    tmp_path: Path,
) -> None:
    """A bad draft costs time, never text: that is a result like any other."""
    own = heads[name]
    assert own.draft is not None
    job = job_of(spec, own, untrained(own.draft, tmp_path / "untrained.gguf"), 3)
    samples = of_arm(measured(load(job), job, prompts), Arm.SPECULATIVE)
    for sample in samples:
        start = start_state(law, CATEGORY, sample.prompt_digest, TEXTS.index(sample.prompt_digest))
        assert sample.output_ids == law.greedy_walk(start, job.generate_tokens)
        assert sample.parity is Parity.EXACT
        assert sample.drafted > 0
        assert sample.accepted == 0
        assert sample.rounds == job.generate_tokens - 1
