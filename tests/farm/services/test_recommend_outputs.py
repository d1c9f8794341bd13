"""What recommendations hold of outputs: causes of mismatches, laws, lossy baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from sample_farm import add_machine, claimed, measure, paired, queue_jobs, spec
from sqlalchemy import Engine

from farm.domain.decoding import Sampling, Settings
from farm.domain.engines import IN_PROCESS, LLAMA_SERVER
from farm.domain.job import Arm, JobSpec
from farm.domain.measurement import Parity
from farm.report.wording import outputs_text
from farm.science.recommendation import Verdict
from farm.services.recommend import Recommendation, recommendations
from farm.store import jobs
from farm.store.database import reading, writing
from farm.store.results import add_samples

DOUBLED = (2.0,) * 6


@pytest.fixture
def worker(database: Engine) -> jobs.Claimer:
    return add_machine(database)


def only(engine: Engine) -> Recommendation:
    with reading(engine) as session:
        (found,) = recommendations(session)
    return found


def measured(
    engine: Engine, worker: jobs.Claimer, wanted: JobSpec, ratios: Sequence[float], **changes: Any
) -> None:
    queue_jobs(engine, [wanted], f"sweep of {wanted.key}")
    measure(engine, worker, paired(ratios, **changes))


class TestCauses:
    def test_a_mismatch_is_told_with_what_the_control_says_of_it(
        self, database: Engine, worker: jobs.Claimer
    ) -> None:
        """The runs say token 3 at position 3: a control that says so too is batch arithmetic."""
        queue_jobs(database, [spec()])
        runs = paired(DOUBLED)
        for at, control in ((1, 3), (3, 9), (5, None)):
            runs[at] = replace(
                runs[at], parity=Parity.MISMATCH, first_divergence=3, margin_logits=2.0,
                control_token=control,
            )  # fmt: skip
        near = {"first_divergence": 4, "margin_logits": 0.1, "control_token": 4}
        runs[7] = replace(runs[7], parity=Parity.NEAR_TIE, **near)
        measure(database, worker, runs)

        found = only(database)

        assert found.to_payload()["curve"][0]["causes"] == {
            "mismatch": {"arithmetic": 1, "unexplained": 1, "unknown": 1},
            "near-tie": {"arithmetic": 1},
        }
        assert found.verdict == Verdict.OFF
        assert found.reason == (
            "every configuration changed the output: 3 hard mismatches, "
            "1 of them reproduced by batch scoring alone"
        )

    def test_a_mismatch_without_a_control_has_no_cause(
        self, database: Engine, worker: jobs.Claimer
    ) -> None:
        changed = {"parity": Parity.MISMATCH, "first_divergence": 3, "margin_logits": 2.0}
        measured(database, worker, spec(), DOUBLED, **changed)

        reason = only(database).reason

        assert reason == "every configuration changed the output: 6 hard mismatches"

    def test_a_text_that_had_ended_has_no_token_there(
        self, database: Engine, worker: jobs.Claimer
    ) -> None:
        ended = {"parity": Parity.MISMATCH, "first_divergence": 101, "control_token": 7}
        measured(database, worker, spec(), DOUBLED, **ended)

        assert only(database).curve[0].causes == {"mismatch": {"unexplained": 6}}

    def test_a_lossy_baseline_is_no_mismatch_of_speculation(
        self, database: Engine, worker: jobs.Claimer
    ) -> None:
        lossy = Settings(cache_type_k="q8_0")
        for n_max in (2, 4):
            queue_jobs(database, [spec(n_max, settings=lossy)], f"K {n_max}")
            runs = paired(DOUBLED)
            for at, parity in enumerate((Parity.MISMATCH, Parity.NEAR_TIE, *[Parity.EXACT] * 3)):
                position = None if parity is Parity.EXACT else 5
                runs[2 * at] = replace(runs[2 * at], parity=parity, first_divergence=position)
            measure(database, worker, runs)

        found = only(database)

        # Six prompts, of which one was not compared, however many K measured them.
        assert found.unmodified_parity == {"mismatch": 1, "near-tie": 1, "exact": 3}
        assert found.verdict == Verdict.ON
        assert [point.parity for point in found.curve] == [{"exact": 6}] * 2


class TestLawChecks:
    @pytest.mark.parametrize(
        ("engine", "arms"),
        [(IN_PROCESS, list(Arm)), (LLAMA_SERVER, [Arm.SPECULATIVE])],
    )
    def test_a_point_has_the_checks_of_its_jobs(
        self, database: Engine, worker: jobs.Claimer, engine: str, arms: list[Arm]
    ) -> None:
        """llama-server draws both arms from one seed: one text, which counts once."""
        worker = replace(worker, engines=(engine,))
        drawn = {"sampling": Sampling(0.7, 0), "engine": engine}
        held = {arm.value: {"tokens": 600, "p_value": 0.5} for arm in Arm}
        for label, checks in (("a", {"law": held}), ("b", None), ("c", {})):
            queue_jobs(database, [spec(label=label, **drawn)], label)
            job = claimed(database, worker)
            with writing(database) as session:
                jobs.describe_attempt(session, job, checks=checks)
                assert add_samples(session, job, paired(DOUBLED))
                assert jobs.finish(session, job)

        (point,) = only(database).curve
        assert point.law_checks == ({arm: held[arm] for arm in arms},)
        assert outputs_text((point,)) == f"law held, {600 * len(arms):,} tokens"
