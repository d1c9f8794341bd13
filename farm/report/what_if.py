"""What-ifs as rows of text: always apart from what was measured of the target's own text."""

from __future__ import annotations

from collections.abc import Sequence

from farm.report.wording import (
    configuration,
    pair_label,
    plain,
    speed_texts,
    temperature_label,
)
from farm.services.recommend import WhatIfCurve

WHAT_IF_HEADING = "What if: synthetic acceptance; the text is not valid output"
WHAT_IF_NOTE = (
    "llama.cpp accepted drafted tokens at random here, as often as it was told. The speeds are "
    "measured; what a draft with that acceptance would cost is this draft's cost. Nothing above "
    "rests on these."
)
WHAT_IF_HEADER = (
    "Setup", "Content", "Configuration", "Speedup", "95 % interval", "Acceptance", "Tokens/round",
    "Baseline tok/s", "Speculative tok/s", "Prompts",
)  # fmt: skip


def what_if_setup(curve: WhatIfCurve) -> str:
    """Return whose what-ifs these are."""
    setup = curve.setup
    return (
        f"{plain(setup.machine)} · {pair_label(setup)} · "
        f"temperature {temperature_label(setup.temperature)}"
    )


def what_if_rows(curves: Sequence[WhatIfCurve]) -> list[tuple[str, ...]]:
    """Return one row per made-up acceptance tried."""
    return [
        (
            what_if_setup(curve),
            curve.setup.category,
            configuration(point.speculation, curve.setup.temperature),
            *speed_texts(point),
            str(point.prompts),
        )
        for curve in curves
        for point in curve.curve
    ]
