"""The recommendation tables as data frames: numbers stay numbers, so that they sort and align."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from farm.report.tables import ALL_USERS_HEADER
from farm.report.what_if import WHAT_IF_HEADER, what_if_setup
from farm.report.wording import (
    configuration,
    headline_outputs,
    interval_text,
    labelled_verdict,
    outputs_text,
)
from farm.services.recommend import CurvePoint, Recommendation, WhatIfCurve


def headline(recommendations: Sequence[Recommendation]) -> pd.DataFrame:
    """Return one row per category of a subject.

    With speculation off the figures are those of what came closest; they are None where no
    configuration can be judged.
    """
    return pd.DataFrame([_advice_cells(item) for item in recommendations])


def curves(recommendations: Sequence[Recommendation]) -> pd.DataFrame:
    """Return one row per category and configuration tried."""
    rows = [
        {
            "Content": item.setup.category,
            "Configuration": configuration(point.speculation, item.setup.temperature),
        }
        | _figures(point)
        | _together(item, point)
        for item in recommendations
        for point in item.curve
    ]
    return pd.DataFrame(rows)


def what_ifs(curves: Sequence[WhatIfCurve]) -> pd.DataFrame:
    """Return one row per made-up acceptance tried, under the reports' own headings."""
    rows = [
        {
            "Setup": what_if_setup(curve),
            "Content": curve.setup.category,
            "Configuration": configuration(point.speculation, curve.setup.temperature),
        }
        | _figures(point)
        for curve in curves
        for point in curve.curve
    ]
    return pd.DataFrame(rows, columns=list(WHAT_IF_HEADER))


def _advice_cells(recommendation: Recommendation) -> dict[str, object]:
    best = recommendation.best
    cells: dict[str, object] = {
        "Content": recommendation.setup.category,
        "Verdict": labelled_verdict(recommendation),
        "Best K": best.speculation.n_max or None if best else None,
    }
    if best is not None:
        return cells | _figures(best)
    unjudged = dict.fromkeys(_figures(recommendation.curve[0]))
    return (
        cells
        | unjudged
        | {
            "95 % interval": interval_text(None),
            "Parity": headline_outputs(recommendation),
            "Prompts": max(point.prompts for point in recommendation.curve),
        }
    )


def _figures(point: CurvePoint) -> dict[str, object]:
    acceptance = point.acceptance_rate
    return {
        "Speedup": point.speedup.estimate if point.speedup else None,
        "95 % interval": interval_text(point.speedup),
        "Acceptance": None if acceptance is None else 100 * acceptance,
        "Tokens/round": point.tokens_per_round,
        "Baseline tok/s": point.baseline_tok_s,
        "Speculative tok/s": point.speculative_tok_s,
        "Parity": outputs_text((point,)),
        "Prompts": point.prompts,
    }


def _together(recommendation: Recommendation, point: CurvePoint) -> dict[str, object]:
    if recommendation.setup.settings.concurrent_requests == 1:
        return {}
    together = (point.server_baseline_tok_s, point.server_speculative_tok_s)
    return dict(zip(ALL_USERS_HEADER, together, strict=True))
