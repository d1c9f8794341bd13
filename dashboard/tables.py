"""The pages' tables as data frames: numbers stay numbers, so that they sort and align."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from farm.report.grouping import Subject
from farm.report.wording import (
    configuration,
    headline_parity,
    interval_text,
    labelled_verdict,
    pair_label,
    parity_text,
    plain,
    temperature_label,
)
from farm.services.recommend import CurvePoint, Recommendation

SUBJECT_COLUMNS = ("Machine", "Pair", "Temp.", "Build")


def headline(subjects: Sequence[Subject]) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return one row per machine, pair and category, and the columns left out.

    What is the same in every row (SUBJECT_COLUMNS) is returned by name instead of as a column.
    With speculation off the figures are those of what came closest.
    """
    rows = [
        _subject_cells(item) | {"Content": item.setup.category} | _advice_cells(item)
        for subject in subjects
        for item in subject.recommendations
    ]
    frame = pd.DataFrame(rows)
    constant = {
        name: str(frame[name].iloc[0]) for name in SUBJECT_COLUMNS if frame[name].nunique() == 1
    }
    return frame.drop(columns=list(constant)), constant


def curve(recommendation: Recommendation) -> pd.DataFrame:
    """Return one row per configuration tried."""
    temperature = recommendation.setup.temperature
    rows = [
        {
            "Content": recommendation.setup.category,
            "Configuration": configuration(point.speculation, temperature),
        }
        | _figures(point)
        for point in recommendation.curve
    ]
    return pd.DataFrame(rows)


def _subject_cells(recommendation: Recommendation) -> dict[str, str]:
    setup = recommendation.setup
    digest = f" ({setup.build_digest[:8]})" if setup.build_digest else ""
    return {
        "Machine": plain(setup.machine),
        "Pair": pair_label(setup),
        "Temp.": temperature_label(setup.temperature),
        "Build": f"{plain(setup.build)}{digest}",
    }


def _advice_cells(recommendation: Recommendation) -> dict[str, object]:
    best = recommendation.best
    figures: dict[str, object] = {"Verdict": labelled_verdict(recommendation)}
    figures["Best K"] = best.speculation.n_max if best else None
    if best is not None:
        return figures | _figures(best)
    prompts = max((point.prompts for point in recommendation.curve), default=0)
    nothing = _figures(
        CurvePoint(recommendation.curve[0].speculation, prompts, *[None] * 5, parity={})
    )
    return figures | nothing | {"Parity": parity_text(headline_parity(recommendation))}


def _figures(point: CurvePoint) -> dict[str, object]:
    acceptance = point.acceptance_rate
    return {
        "Speedup": point.speedup.estimate if point.speedup else None,
        "95 % interval": interval_text(point.speedup),
        "Acceptance": None if acceptance is None else 100 * acceptance,
        "Tokens/round": point.tokens_per_round,
        "Base tok/s": point.baseline_tok_s,
        "Spec. tok/s": point.speculative_tok_s,
        "Parity": parity_text(point.parity),
        "Prompts": point.prompts,
    }
