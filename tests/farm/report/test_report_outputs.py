"""How outputs are spoken of: what the control explains, what a law says, what is lossy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from farm.domain.decoding import Settings
from farm.report.markdown import render
from farm.report.tables import parity_rows, reason_text
from farm.report.wording import lossy_text, outputs_text
from farm.services.recommend import CurvePoint, Recommendation

Make = Callable[..., Recommendation]


def at_parity(make: Make, parity: dict[str, int], **changes: Any) -> CurvePoint:
    return replace(make(parity=parity).curve[0], **changes)


@pytest.mark.parametrize(
    ("causes", "text"),
    [
        ({}, "exact 20/24, near-tie 1, mismatch 3"),
        ({"mismatch": {"unknown": 3}}, "exact 20/24, near-tie 1, mismatch 3"),
        (
            {"near-tie": {"arithmetic": 1}, "mismatch": {"arithmetic": 2, "unexplained": 1}},
            "exact 20/24, near-tie 1, mismatch 3 (2 by batch scoring alone)",
        ),
        (
            {"mismatch": {"unexplained": 3}},
            "exact 20/24, near-tie 1, mismatch 3 (none by batch scoring alone)",
        ),
    ],
)
def test_mismatches_are_shown_with_their_cause(
    make: Make, causes: dict[str, dict[str, int]], text: str
) -> None:
    counted = at_parity(make, {"exact": 20, "near-tie": 1, "mismatch": 3}, causes=causes)
    assert outputs_text((counted,)) == text


def test_a_law_that_held_is_what_is_known_above_temperature_0(make: Make) -> None:
    held = {
        "baseline": {"tokens": 600, "p_value": 0.5},
        "speculative": {"tokens": 700, "p_value": 1.0},
    }
    short = {arm: {"tokens": 6, "p_value": None} for arm in held}
    drawn = {"not-compared": 24}
    checked = at_parity(make, drawn, law_checks=(held, held))
    assert outputs_text((checked,)) == "law held, 2,600 tokens"
    assert outputs_text((at_parity(make, drawn, law_checks=(short,)),)) == "not compared"
    assert outputs_text((at_parity(make, drawn),)) == "not compared"


@pytest.mark.parametrize(
    ("settings", "parity", "text"),
    [
        (Settings(), {}, None),
        (
            Settings(cache_type_k="q8_0"),
            {"exact": 9, "near-tie": 1, "mismatch": 2},
            "lossy (K cache q8_0): text differs from the unmodified target's on 3 of 12 prompts",
        ),
        (
            Settings(cache_type_v="q4_0", experts_used=2),
            {},
            "lossy (V cache q4_0, 2 experts used): not compared with the unmodified target",
        ),
    ],
)
def test_what_is_lossy_says_so(
    make: Make, settings: Settings, parity: dict[str, int], text: str | None
) -> None:
    item = replace(make(settings=settings), unmodified_parity=parity)
    assert lossy_text(item) == text
    assert reason_text(item) == "; ".join(filter(None, ["a reason", text]))


@pytest.mark.parametrize(
    ("causes", "finding"),
    [
        ({"arithmetic": 2}, "output changed by batch arithmetic"),
        ({"arithmetic": 1, "unexplained": 1}, "output changed"),
        ({"unknown": 2}, "output changed"),
    ],
)
def test_a_category_whose_mismatches_are_all_arithmetic_says_so(
    make: Make, causes: dict[str, int], finding: str
) -> None:
    item = make(parity={"exact": 22, "mismatch": 2})
    point = replace(item.curve[0], causes={"mismatch": causes})
    (row,) = parity_rows([replace(item, curve=(point,))])
    assert row == ("chat", finding, "22", "0", "2", "0")


def test_a_report_names_what_is_lossy(make: Make) -> None:
    item = replace(
        make(settings=Settings(cache_type_k="q8_0")), unmodified_parity={"exact": 11, "mismatch": 1}
    )
    text = render([item], title="Report", generated_at=datetime(2025, 1, 2, tzinfo=UTC))
    assert "text differs from the unmodified target's on 1 of 12 prompts" in text
    assert "| chat | identical; the baseline is lossy | 24 | 0 | 0 | 0 |" in text
