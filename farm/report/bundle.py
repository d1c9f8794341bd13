"""Both reports of one measurement, side by side in a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from farm.report.files import write_atomically
from farm.report.html import write_html
from farm.report.markdown import render
from farm.services.recommend import Recommendation, WhatIfCurve
from farm.store.queries import MachineSummary


def write_report(
    folder: Path,
    recommendations: Sequence[Recommendation],
    *,
    title: str,
    generated_at: datetime,
    environment: Mapping[str, Any] | None = None,
    machines: Sequence[MachineSummary] = (),
    what_ifs: Sequence[WhatIfCurve] = (),
) -> tuple[Path, Path]:
    """Write `report.md` and `report.html` into `folder` and return their paths."""
    text = render(
        recommendations,
        title=title,
        generated_at=generated_at,
        environment=environment,
        machines=machines,
        what_ifs=what_ifs,
    )
    return (
        write_atomically(folder / "report.md", text),
        write_html(
            folder / "report.html",
            recommendations,
            title=title,
            generated_at=generated_at,
            environment=environment,
            machines=machines,
            what_ifs=what_ifs,
        ),
    )
