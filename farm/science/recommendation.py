"""From a K curve to advice: which configuration, or none, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from farm.science.paired import MIN_PAIRS, Interval, ratio_interval


class Verdict(StrEnum):
    """What to do. OFF covers both a proven slowdown and a gain that is not proven."""

    ON = "on"
    OFF = "off"
    UNDECIDED = "too-few-prompts"


@dataclass(frozen=True)
class Candidate:
    """One measured configuration: ln(speedup) per prompt and how many outputs were wrong.

    arithmetic: how many of the mismatches wide passes alone explain (`parity.Cause`), None where
    that is unknown.
    """

    log_speedups: tuple[float, ...]
    mismatches: int = 0
    arithmetic: int | None = None


@dataclass(frozen=True)
class Advice:
    """The verdict over a set of candidates.

    best: index of the candidate with the highest speedup among those proven to gain, or, with
    the verdict OFF, among all lossless ones (it is what came closest); None where no candidate
    can be judged. as_good:
    indices of candidates whose interval reaches the best's estimate. speedups: one simultaneous
    95 % interval per candidate, None where too few prompts.
    """

    verdict: Verdict
    best: int | None
    as_good: tuple[int, ...]
    speedups: tuple[Interval | None, ...]
    reason: str


def advise(candidates: Sequence[Candidate]) -> Advice:
    """Pick the best candidate whose interval lies above 1, and say off where there is none.

    The intervals hold together, so looking at all of them and picking one is allowed. Candidates
    with hard mismatches are never picked: a faster wrong answer is no answer, and one that wide
    passes alone explain is no less another answer. The reason names the cause.
    """
    judged = sum(len(candidate.log_speedups) >= MIN_PAIRS for candidate in candidates)
    speedups = tuple(
        ratio_interval(candidate.log_speedups, comparisons=max(judged, 1))
        for candidate in candidates
    )
    usable = {
        index: interval
        for index, interval in enumerate(speedups)
        if interval is not None and candidates[index].mismatches == 0
    }
    if not usable:
        if any(interval is not None for interval in speedups):
            reason = f"every configuration changed the output: {_mismatches(candidates)}"
            return Advice(Verdict.OFF, None, (), speedups, reason)
        return Advice(
            Verdict.UNDECIDED, None, (), speedups, f"fewer than {MIN_PAIRS} prompts measured"
        )
    proven = [index for index in usable if usable[index].low > 1]
    best = max(proven or usable, key=lambda index: usable[index].estimate)
    top = usable[best]
    as_good = tuple(
        index
        for index, interval in usable.items()
        if index != best and interval.high >= top.estimate
    )
    if proven:
        verdict, reason = Verdict.ON, "the interval lies above 1"
    elif all(interval.high < 1 for interval in usable.values()):
        verdict, reason = Verdict.OFF, "every configuration is slower"
    else:
        verdict, reason = Verdict.OFF, "a gain is not proven"
    if any(candidate.mismatches for candidate in candidates):
        reason += f"; left out for changed output: {_mismatches(candidates)}"
    return Advice(verdict, best, as_good, speedups, reason)


def _mismatches(candidates: Sequence[Candidate]) -> str:
    """Say how many outputs were wrong, and how many of them wide passes alone explain."""
    wrong = [candidate for candidate in candidates if candidate.mismatches]
    count = sum(candidate.mismatches for candidate in wrong)
    said = f"{count} hard mismatch{'es' * (count > 1)}"
    known = [candidate.arithmetic for candidate in wrong if candidate.arithmetic is not None]
    if not known:
        return said
    return f"{said}, {sum(known) or 'none'} of them reproduced by batch scoring alone"
