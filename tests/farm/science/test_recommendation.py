from __future__ import annotations

import math

import numpy as np
import pytest

from farm.science.paired import MIN_PAIRS, ratio_interval
from farm.science.recommendation import Candidate, Verdict, advise


def around(
    ratio: float,
    spread: float = 0.02,
    prompts: int = 6,
    mismatches: int = 0,
    arithmetic: int | None = None,
) -> Candidate:
    """Return a candidate whose speedups lie evenly around a ratio."""
    offsets = np.linspace(-spread, spread, prompts)
    speedups = tuple(math.log(ratio) + float(offset) for offset in offsets)
    return Candidate(speedups, mismatches, arithmetic)


class TestVerdict:
    def test_on_when_the_best_interval_lies_above_one(self) -> None:
        advice = advise([around(1.1), around(1.6), around(1.3)])

        assert (advice.verdict, advice.best) == (Verdict.ON, 1)
        assert advice.reason == "the interval lies above 1"

    def test_off_when_a_gain_is_likely_and_not_proven(self) -> None:
        advice = advise([around(1.05, spread=0.5)])

        assert (advice.verdict, advice.best) == (Verdict.OFF, 0)
        assert advice.reason == "a gain is not proven"

    def test_off_when_every_configuration_is_slower(self) -> None:
        advice = advise([around(0.7), around(0.9)])

        assert (advice.verdict, advice.best) == (Verdict.OFF, 1)
        assert advice.reason == "every configuration is slower"

    def test_off_when_every_configuration_changed_the_output(self) -> None:
        advice = advise([around(2.0, mismatches=1), around(3.0, mismatches=2)])

        assert (advice.verdict, advice.best) == (Verdict.OFF, None)
        assert advice.reason == "every configuration changed the output: 3 hard mismatches"

    @pytest.mark.parametrize(
        ("candidates", "said"),
        [
            ([(1, None)], "1 hard mismatch"),
            ([(1, 0)], "1 hard mismatch, none of them reproduced by batch scoring alone"),
            ([(2, 2)], "2 hard mismatches, 2 of them reproduced by batch scoring alone"),
            (
                [(2, 1), (3, 0), (1, None)],
                "6 hard mismatches, 1 of them reproduced by batch scoring alone",
            ),
        ],
    )
    def test_the_reason_names_the_cause_and_arithmetic_is_no_excuse(
        self, candidates: list[tuple[int, int | None]], said: str
    ) -> None:
        wrong = [around(3.0, mismatches=count, arithmetic=some) for count, some in candidates]

        refused, kept = advise(wrong), advise([around(1.4), *wrong])

        assert (refused.verdict, refused.best) == (Verdict.OFF, None)
        assert refused.reason == f"every configuration changed the output: {said}"
        assert (kept.verdict, kept.best) == (Verdict.ON, 0)
        assert kept.reason == f"the interval lies above 1; left out for changed output: {said}"

    def test_undecided_when_too_few_prompts_were_measured(self) -> None:
        advice = advise([around(2.0, prompts=MIN_PAIRS - 1), Candidate(())])

        assert (advice.verdict, advice.best) == (Verdict.UNDECIDED, None)
        assert advice.speedups == (None, None)
        assert str(MIN_PAIRS) in advice.reason

    def test_undecided_without_any_candidate(self) -> None:
        assert advise([]).verdict == Verdict.UNDECIDED

    def test_exactly_as_fast_is_no_gain(self) -> None:
        assert advise([Candidate((0.0,) * 6)]).verdict == Verdict.OFF


class TestChoice:
    def test_never_picks_a_candidate_that_changed_the_output(self) -> None:
        advice = advise([around(1.4), around(3.0, mismatches=1)])

        assert (advice.verdict, advice.best, advice.as_good) == (Verdict.ON, 0, ())

    def test_a_wrong_candidate_is_not_as_good_either(self) -> None:
        advice = advise([around(1.5), around(1.49, mismatches=1)])

        assert advice.as_good == ()

    def test_leaves_out_a_candidate_with_too_few_prompts(self) -> None:
        advice = advise([around(1.4), around(3.0, prompts=MIN_PAIRS - 1)])

        assert advice.best == 0
        assert advice.speedups[1] is None

    def test_names_what_can_not_be_told_from_the_best(self) -> None:
        advice = advise([around(1.2, 0.01), around(1.49, 0.05), around(1.5, 0.05)])

        assert (advice.best, advice.as_good) == (2, (1,))

    def test_a_wide_interval_that_reaches_the_best_is_as_good(self) -> None:
        advice = advise([around(1.5, 0.01), around(1.3, 0.4), around(1.3, 0.01)])

        assert (advice.best, advice.as_good) == (0, (1,))


class TestIntervals:
    def test_share_the_error_among_those_that_can_be_judged(self) -> None:
        candidates = [around(1.2), around(1.3, mismatches=1), around(1.4, prompts=2)]

        advice = advise(candidates)

        assert advice.speedups == (
            ratio_interval(candidates[0].log_speedups, comparisons=2),
            ratio_interval(candidates[1].log_speedups, comparisons=2),
            None,
        )

    def test_an_effect_proven_alone_may_not_be_proven_among_many(self) -> None:
        shaky = around(1.1, spread=0.1)
        hopeless = [around(0.5)] * 7

        assert advise([shaky]).verdict == Verdict.ON
        assert advise([shaky, *hopeless]).verdict == Verdict.OFF


@pytest.mark.parametrize("prompts", [3, 6])
def test_pure_noise_is_seldom_recommended(prompts: int) -> None:
    simulated = 1000
    draws = np.random.default_rng(11).normal(0.0, 0.2, (simulated, 4, prompts))

    recommended = sum(
        advise([Candidate(tuple(values)) for values in curve]).verdict == Verdict.ON
        for curve in draws
    )

    # One side of a 95 % interval: 2.5 % of curves, and four standard deviations of that share.
    bound = 0.025 + 4 * math.sqrt(0.025 * 0.975 / simulated)
    assert recommended / simulated < bound


def test_a_real_gain_is_found() -> None:
    draws = np.random.default_rng(12).normal(math.log(1.5), 0.1, (200, 1, 6))

    found = sum(
        advise([Candidate(tuple(values)) for values in curve]).verdict == Verdict.ON
        for curve in draws
    )

    assert found == 200
