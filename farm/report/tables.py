"""The reports' tables as rows of text, for Markdown and HTML alike."""

from __future__ import annotations

from collections.abc import Sequence

from farm.domain.measurement import Parity
from farm.report.grouping import Subject
from farm.report.provenance import build_text, system_text
from farm.report.wording import (
    NOT_MEASURED,
    as_good_text,
    configuration,
    headline_outputs,
    labelled_verdict,
    lossy_text,
    measured_with,
    mismatch_causes,
    number_text,
    outputs_text,
    pair_label,
    speed_texts,
    temperature_label,
    total_parity,
)
from farm.science.parity import Cause
from farm.science.recommendation import Verdict
from farm.services.recommend import Recommendation

SUMMARY_HEADER = (
    "Content", "Verdict", "Best K", "Speedup", "95 % interval", "Acceptance", "Tokens/round",
    "Baseline tok/s", "Speculative tok/s", "Parity", "Prompts",
)  # fmt: skip
CURVE_HEADER = (
    "Configuration", "Standing", "Speedup", "95 % interval", "Acceptance", "Tokens/round",
    "Baseline tok/s", "Speculative tok/s", "Parity", "Prompts",
)  # fmt: skip
ALL_USERS_HEADER = ("All users: baseline tok/s", "All users: speculative tok/s")
PARITY_HEADER = ("Content", "Finding", "Exact", "Near-tie", "Mismatch", "Not compared")


def subject_facts(subject: Subject) -> list[tuple[str, str]]:
    """Return what was measured, and with what."""
    setup = subject.setup
    digest = f" (libraries {setup.build_digest[:12]})" if setup.build_digest else ""
    build = f", {build_text(setup.conditions)}" if setup.conditions else ""
    return [
        ("Machine", f"{setup.machine} ({setup.hardware})"),
        ("Pair", pair_label(setup)),
        ("Speculation", setup.kind),
        ("Temperature", temperature_label(setup.temperature)),
        ("Engine and build", f"{setup.engine}, {setup.build}{digest}{build}"),
        ("System", system_text(setup.conditions)),
        ("Settings", measured_with(setup)),
    ]


def summary_rows(recommendations: Sequence[Recommendation]) -> list[tuple[str, ...]]:
    """Return one row per category. With speculation off the figures are what came closest."""
    return [
        (item.setup.category, labelled_verdict(item), *_headline(item)) for item in recommendations
    ]


def curve_header(recommendation: Recommendation) -> tuple[str, ...]:
    """Return the header of `curve_rows`; several users at once have a total."""
    several = recommendation.setup.settings.concurrent_requests > 1
    return CURVE_HEADER + ALL_USERS_HEADER * several


def curve_rows(recommendation: Recommendation) -> list[tuple[str, ...]]:
    """Return one row per configuration tried."""
    as_good = {point.speculation for point in recommendation.as_good}
    rows: list[tuple[str, ...]] = []
    several = recommendation.setup.settings.concurrent_requests > 1
    for point in recommendation.curve:
        together = point.server_baseline_tok_s, point.server_speculative_tok_s
        standing = "as good" if point.speculation in as_good else ""
        if point == recommendation.best:
            standing = "closest" if recommendation.verdict is Verdict.OFF else "best"
        elif point.parity.get(Parity.MISMATCH):
            standing = "changed the output"
        rows.append(
            (
                configuration(point.speculation, recommendation.setup.temperature),
                standing,
                *speed_texts(point),
                outputs_text((point,)),
                str(point.prompts),
                *(tuple(map(number_text, together)) * several),
            )
        )
    return rows


def parity_rows(recommendations: Sequence[Recommendation]) -> list[tuple[str, ...]]:
    """Return the parity counts per category over every configuration tried."""
    rows: list[tuple[str, ...]] = []
    for item in recommendations:
        total = total_parity(item.curve)
        if total.get(Parity.MISMATCH):
            finding = "output changed"
            if mismatch_causes(item.curve).keys() == {Cause.ARITHMETIC}:
                finding += " by batch arithmetic"
        elif total.get(Parity.NEAR_TIE):
            finding = "rounding only"
        else:
            finding = "identical" if total.get(Parity.EXACT) else outputs_text(item.curve)
        if item.setup.settings.lossy:
            finding += "; the baseline is lossy"
        order = (Parity.EXACT, Parity.NEAR_TIE, Parity.MISMATCH, Parity.NOT_COMPARED)
        rows.append((item.setup.category, finding, *(str(total.get(name, 0)) for name in order)))
    return rows


def reason_text(recommendation: Recommendation) -> str:
    """Return the reason for the verdict, what came closest or measured as good, what is lossy."""
    parts = [recommendation.reason]
    if recommendation.best is not None and recommendation.verdict is Verdict.OFF:
        speculation = recommendation.best.speculation
        parts.append(f"closest: {configuration(speculation, recommendation.setup.temperature)}")
    if others := as_good_text(recommendation):
        parts.append(f"as good: {others}")
    if lossy := lossy_text(recommendation):
        parts.append(lossy)
    return "; ".join(parts)


def _headline(recommendation: Recommendation) -> tuple[str, ...]:
    best = recommendation.best
    parity = headline_outputs(recommendation)
    if best is None:
        prompts = max((point.prompts for point in recommendation.curve), default=0)
        return (*[NOT_MEASURED] * 7, parity, str(prompts))
    return (
        best.speculation.k_text,
        *speed_texts(best),
        parity,
        str(best.prompts),
    )
