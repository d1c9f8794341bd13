from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from sample_farm import (
    DIGESTS,
    add_machine,
    claimed,
    expire_leases,
    make_due,
    measure,
    model,
    paired,
    queue_jobs,
    sample,
    spec,
    submit_jobs,
)
from sqlalchemy import Engine

from farm.domain.decoding import Sampling, Settings, Speculation, SpeculationKind, WhatIf
from farm.domain.hardware import MachineKind
from farm.domain.job import Arm, JobSpec
from farm.domain.measurement import Parity
from farm.science.recommendation import Verdict
from farm.services.recommend import Recommendation, findings, recommendations
from farm.store import jobs
from farm.store.database import reading, writing
from farm.store.results import add_late_samples, add_samples

T_95_DF3 = 3.18245
T_9875_DF3 = 5.392  # 95 % shared by four
DOUBLED = (2.0,) * 6


@pytest.fixture
def worker(database: Engine) -> jobs.Claimer:
    return add_machine(database)


def advice(engine: Engine, sweep_id: int | None = None) -> list[Recommendation]:
    with reading(engine) as session:
        return recommendations(session, sweep_id)


def only(engine: Engine) -> Recommendation:
    (found,) = advice(engine)
    return found


def measured(
    engine: Engine, worker: jobs.Claimer, wanted: JobSpec, ratios: Sequence[float], **changes: Any
) -> None:
    queue_jobs(engine, [wanted], f"sweep of {wanted.key}")
    measure(engine, worker, paired(ratios, **changes))


def estimates(found: Recommendation) -> list[float]:
    return [round(point.speedup.estimate, 6) for point in found.curve if point.speedup]


class TestInterval:
    def test_known_speedups_give_the_known_interval(
        self, database: Engine, worker: jobs.Claimer
    ) -> None:
        logs = [0.2, 0.4, 0.6, 0.8]
        measured(database, worker, spec(), [math.exp(value) for value in logs])

        (point,) = only(database).curve

        half = T_95_DF3 * math.sqrt(0.2 / 3 / 4)
        assert point.speedup is not None
        assert math.log(point.speedup.estimate) == pytest.approx(0.5)
        assert math.log(point.speedup.low) == pytest.approx(0.5 - half, rel=1e-4)
        assert math.log(point.speedup.high) == pytest.approx(0.5 + half, rel=1e-4)
        assert (point.prompts, point.speedup.pairs) == (4, 4)

    def test_the_points_of_a_curve_share_the_error(
        self, database: Engine, worker: jobs.Claimer
    ) -> None:
        for k in (1, 2, 4, 8):
            measured(database, worker, spec(k), [math.exp(v) for v in (0.2, 0.4, 0.6, 0.8)])

        found = only(database)

        half = T_9875_DF3 * math.sqrt(0.2 / 3 / 4)
        assert [point.speculation.n_max for point in found.curve] == [1, 2, 4, 8]
        for point in found.curve:
            assert point.speedup is not None
            assert math.log(point.speedup.high) == pytest.approx(0.5 + half, rel=1e-3)

    def test_repeats_of_a_prompt_count_once_with_their_mean(
        self, database: Engine, worker: jobs.Claimer
    ) -> None:
        queue_jobs(database, [spec(repeats=2)])
        runs = [
            replace(run, repeat=repeat)
            for repeat, ratio in enumerate((1.0, 4.0))
            for run in paired([ratio] * 3)
        ]
        measure(database, worker, runs)

        (point,) = only(database).curve

        assert point.prompts == 3
        assert point.speedup is not None
        assert point.speedup.estimate == pytest.approx(2.0)

    def test_a_run_is_compared_with_its_own_jobs_baseline(
        self, database: Engine, worker: jobs.Claimer
    ) -> None:
        # The machine was twice as fast for the second job; the speedup was 2 both times.
        measured(database, worker, spec(label="a"), DOUBLED, tok_s=50)
        measured(database, worker, spec(label="b"), DOUBLED, tok_s=100)

        (point,) = only(database).curve

        assert point.speedup is not None
        assert (point.speedup.low, point.speedup.high) == (pytest.approx(2), pytest.approx(2))


class TestPoint:
    def test_totals_over_the_samples(self, database: Engine, worker: jobs.Claimer) -> None:
        queue_jobs(database, [spec()])
        measure(database, worker, paired([2.0, 2.0, 2.0], drafted=80, accepted=60, rounds=20))

        (point,) = only(database).curve

        assert point.acceptance_rate == pytest.approx(0.75)
        assert point.tokens_per_round == pytest.approx(4.0)
        assert point.baseline_tok_s == pytest.approx(50.0)
        assert point.speculative_tok_s == pytest.approx(100.0)
        assert point.parity == {"exact": 3}

    def test_what_was_never_drafted_has_no_acceptance(
        self, database: Engine, worker: jobs.Claimer
    ) -> None:
        measured(database, worker, spec(), DOUBLED, drafted=0, accepted=0, rounds=0)

        (point,) = only(database).curve

        assert (point.acceptance_rate, point.tokens_per_round) == (None, None)

    def test_a_prompt_that_ended_at_once_has_no_speed(
        self, database: Engine, worker: jobs.Claimer
    ) -> None:
        queue_jobs(database, [spec()])
        ended = [sample(DIGESTS[4], arm, generated_tokens=1, decode_ms=0.0) for arm in Arm]
        measure(database, worker, [*paired([2.0] * 3), *ended])

        assert only(database).curve[0].prompts == 3

    def test_a_run_without_the_other_arm_is_no_pair(
        self, database: Engine, worker: jobs.Claimer
    ) -> None:
        queue_jobs(database, [spec()])
        measure(database, worker, [*paired([2.0] * 3), sample(DIGESTS[5], Arm.SPECULATIVE, 900)])

        (point,) = only(database).curve

        assert point.prompts == 3
        assert point.speedup is not None
        assert point.speedup.estimate == pytest.approx(2.0)


class TestVerdict:
    def test_names_the_fastest_and_what_is_as_good(
        self, database: Engine, worker: jobs.Claimer
    ) -> None:
        spread = (0.98, 1.0, 1.02, 0.99, 1.01, 1.0)
        for k, speedup in ((2, 1.5), (4, 1.999), (8, 2.0)):
            measured(database, worker, spec(k), [speedup * part for part in spread])

        found = only(database)

        assert found.verdict == Verdict.ON
        assert found.best is not None
        assert found.best.speculation.n_max == 8
        assert [point.speculation.n_max for point in found.as_good] == [4]

    def test_a_configuration_that_changed_the_output_is_never_picked(
        self, database: Engine, worker: jobs.Claimer
    ) -> None:
        measured(database, worker, spec(2), DOUBLED)
        queue_jobs(database, [spec(8)], "wrong")
        runs = paired((4.0,) * 6)
        wrong = replace(runs[-1], parity=Parity.MISMATCH, first_divergence=3, margin_logits=2.0)
        measure(database, worker, [*runs[:-1], wrong])

        found = only(database)

        assert found.best is not None
        assert found.best.speculation.n_max == 2
        assert found.curve[1].parity == {"exact": 5, "mismatch": 1}

    def test_a_near_tie_is_no_mismatch(self, database: Engine, worker: jobs.Claimer) -> None:
        measured(database, worker, spec(), DOUBLED, parity=Parity.NEAR_TIE, first_divergence=3)

        assert only(database).verdict == Verdict.ON

    def test_too_few_prompts_decide_nothing(self, database: Engine, worker: jobs.Claimer) -> None:
        measured(database, worker, spec(), (2.0, 2.0))

        found = only(database)

        assert (found.verdict, found.best) == (Verdict.UNDECIDED, None)
        assert found.curve[0].speedup is None


class TestCounted:
    """Only the successful attempt of a finished job counts."""

    def test_nothing_measured_is_no_recommendation(self, database: Engine) -> None:
        queue_jobs(database, [spec()])

        assert advice(database) == []

    def test_samples_of_a_failed_attempt_do_not_count(
        self, database: Engine, worker: jobs.Claimer
    ) -> None:
        queue_jobs(database, [spec()])
        first = claimed(database, worker)
        with writing(database) as session:
            assert add_samples(session, first, paired((9.0,) * 6))
            jobs.fail(session, first, "crashed", "It crashed.")
        assert advice(database) == []
        make_due(database)

        measure(database, worker, paired(DOUBLED))

        assert estimates(only(database)) == [2.0]

    def test_samples_that_come_late_do_not_count(
        self, database: Engine, worker: jobs.Claimer
    ) -> None:
        queue_jobs(database, [spec()])
        first = claimed(database, worker)
        expire_leases(database)
        with writing(database) as session:
            jobs.reap(session)
        make_due(database)
        measure(database, add_machine(database, "bench-2"), paired(DOUBLED))

        with writing(database) as session:
            add_late_samples(session, first.job_id, first.epoch, paired((9.0,) * 6))

        found = only(database)
        assert found.setup.machine == "bench-2"
        assert estimates(found) == [2.0]

    @pytest.mark.parametrize("state", ["running", "failed", "cancelled"])
    def test_samples_of_a_job_that_is_not_done_do_not_count(
        self, database: Engine, worker: jobs.Claimer, state: str
    ) -> None:
        queue_jobs(database, [spec()])
        held = claimed(database, worker)
        with writing(database) as session:
            assert add_samples(session, held, paired(DOUBLED))
            if state == "failed":
                jobs.fail(session, held, "timeout", "It took too long.")
            elif state == "cancelled":
                jobs.cancel(session, [held.job_id])

        assert advice(database) == []

    def test_a_sweep_can_be_asked_for_alone(self, database: Engine, worker: jobs.Claimer) -> None:
        first = submit_jobs(database, [spec(2)], "first").sweep_id
        both = submit_jobs(database, [spec(2), spec(4)], "both").sweep_id
        for ratio in (2.0, 3.0):
            measure(database, worker, paired((ratio,) * 6))

        assert [estimates(found) for found in advice(database, first)] == [[2.0]]
        assert [estimates(found) for found in advice(database, both)] == [[2.0, 3.0]]
        assert advice(database, 999) == []


class TestNeverMixed:
    @pytest.mark.parametrize(
        "changes",
        [
            {"settings": Settings(context_tokens=4096)},
            {"settings": Settings(threads=4)},
            {"settings": Settings(cache_type_k="q8_0")},
            {"settings": Settings(flash_attention="off")},
            {"sampling": Sampling(0.7, 0)},
            {"category": "math-reasoning"},
            {"generate_tokens": 64},
            {"target": model("other-target")},
            {"draft": model("other-draft")},
            {"target": model("target", "another file of that name")},
            {"draft": model("draft", "another file of that name")},
            {"draft": None, "speculation": Speculation(SpeculationKind.PROMPT_LOOKUP, 4)},
        ],
        ids=lambda changes: "-".join(changes),
    )
    def test_what_was_measured_differently(
        self, database: Engine, worker: jobs.Claimer, changes: dict[str, Any]
    ) -> None:
        measured(database, worker, spec(), (2.0,) * 6)
        measured(database, worker, spec(**changes), (3.0,) * 6)

        assert sorted(map(estimates, advice(database))) == [[2.0], [3.0]]

    def test_builds_with_other_libraries_under_one_name(
        self, database: Engine, worker: jobs.Claimer
    ) -> None:
        for ratio, libraries in ((2.0, "a" * 64), (3.0, "b" * 64)):
            queue_jobs(database, [spec(label=libraries)], libraries)
            measure(database, worker, paired((ratio,) * 6), build_digest=libraries)

        found = {one.setup.build_digest: estimates(one) for one in advice(database)}

        assert found == {"a" * 64: [2.0], "b" * 64: [3.0]}

    def test_machines(self, database: Engine, worker: jobs.Claimer) -> None:
        measured(database, worker, spec(label="a"), (2.0,) * 6)
        other = add_machine(database, "bench-2", kind=MachineKind.NVIDIA)
        measured(database, other, spec(label="b"), (3.0,) * 6)

        found = {one.setup.machine: estimates(one) for one in advice(database)}

        assert found == {"bench-1": [2.0], "bench-2": [3.0]}

    def test_speculations_are_points_of_one_curve(
        self, database: Engine, worker: jobs.Claimer
    ) -> None:
        for k, p_min, ratio in ((4, 0.5, 3.0), (2, 0.0, 1.5), (4, 0.0, 2.0)):
            speculation = Speculation(SpeculationKind.DRAFT_SIMPLE, k, p_min=p_min)
            measured(database, worker, spec(speculation=speculation), (ratio,) * 6)

        assert estimates(only(database)) == [1.5, 2.0, 3.0]

    def test_labels_and_seeds_are_measurements_of_one_point(
        self, database: Engine, worker: jobs.Claimer
    ) -> None:
        for seed, ratio in ((1, 1.0), (2, 4.0)):
            measured(database, worker, spec(sampling=Sampling(0.7, seed)), (ratio,) * 6)

        assert estimates(only(database)) == [2.0]


def test_recommendations_come_in_report_order(database: Engine, worker: jobs.Claimer) -> None:
    for category in ("zebra", "math-reasoning", "chat", "code-completion"):
        measured(database, worker, spec(category=category), DOUBLED)

    found = [one.setup.category for one in advice(database)]

    assert found == ["code-completion", "chat", "math-reasoning", "zebra"]


class TestSeveralAtOnce:
    def test_they_are_a_setup_of_their_own_with_a_total(
        self, database: Engine, worker: jobs.Claimer
    ) -> None:
        measured(database, worker, spec(), DOUBLED)
        measured(database, worker, spec(settings=Settings(concurrent_requests=4)), (1.5,) * 6)

        alone, together = sorted(
            advice(database), key=lambda found: found.setup.settings.concurrent_requests
        )

        assert (estimates(alone), estimates(together)) == ([2.0], [1.5])
        (point,) = alone.curve
        assert point.server_baseline_tok_s is point.server_speculative_tok_s is None
        (point,) = together.curve
        # Each run: a prompt of 40.5 ms, then 100 tokens after the first at 50 tok/s, or 75.
        assert point.server_baseline_tok_s == pytest.approx(4 * 101 / (0.0405 + 2))
        assert point.server_speculative_tok_s == pytest.approx(4 * 101 / (0.0405 + 2 / 1.5))


class TestWhatIf:
    def test_is_no_part_of_any_advice(self, database: Engine, worker: jobs.Claimer) -> None:
        """Not even where it is the faster, and of the same setup otherwise."""
        measured(database, worker, spec(), DOUBLED)
        before = advice(database)
        made_up = [WhatIf((1.0,) * 4), WhatIf(length=3.0)]
        for what_if, ratio in zip(made_up, (4.0, 3.0), strict=True):
            speculation = replace(spec().speculation, what_if=what_if)
            wanted = spec(speculation=speculation)
            measured(database, worker, wanted, (ratio,) * 6, parity=Parity.NOT_VALID)

        assert advice(database) == before
        with reading(database) as session:
            (found,) = findings(session).what_ifs
        assert found.setup == replace(before[0].setup, made_up=True)
        assert {
            point.speculation.what_if: point.speedup and round(point.speedup.estimate, 6)
            for point in found.curve
        } == {made_up[0]: 4.0, made_up[1]: 3.0}
