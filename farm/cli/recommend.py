"""farm recommend: what the measurements say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from farm.cli.session import JsonOption, open_session, out, print_json
from farm.cli.what_if import print_what_ifs
from farm.errors import UserError
from farm.report import wording
from farm.report.grouping import Subject, by_subject
from farm.services.recommend import (
    CALIBRATION_NOTE,
    CurvePoint,
    Findings,
    Recommendation,
    findings,
)
from farm.store.database import reading

SweepOption = Annotated[int | None, typer.Option("--sweep", help="Only this sweep's jobs.")]

FIGURES = ("speedup", "95 % interval", "accepted", "parity")


def recommend(sweep: SweepOption = None, as_json: JsonOption = False) -> None:
    """Say which K to use for which content on each machine, or to leave speculation off."""
    found = measured(sweep)
    if as_json:
        print_json([recommendation.to_payload() for recommendation in found.recommendations])
        return
    print_recommendations(found.recommendations)
    print_what_ifs(found.what_ifs)


def measured(sweep: int | None) -> Findings:
    """Return what one sweep says, or all. Raises UserError where there is neither advice nor a
    what-if."""
    with reading(open_session().database()) as session:
        found = findings(session, sweep)
    if not found.recommendations and not found.what_ifs:
        raise UserError(
            "Nothing is measured yet; submit a sweep with 'farm submit FILE' and look at 'farm "
            "status'."
        )
    return found


def print_recommendations(found: Sequence[Recommendation]) -> None:
    """Print one table per machine, pair, temperature and build."""
    for subject in by_subject(found):
        table = table_of(subject, ["content", "use"], FIGURES)
        for recommendation in subject.recommendations:
            best = recommendation.best
            figures = figures_of(best) if best else ["-"] * len(FIGURES)
            use = wording.verdict_text(recommendation)
            table.add_row(recommendation.setup.category, use, *figures)
        out.print(table)


def table_of(subject: Subject, left: Sequence[str], right: Sequence[str]) -> Table:
    """Return a subject's empty table: columns that read left, then figures."""
    setup = subject.setup
    settings = wording.measured_with(setup)
    said = (setup.build, settings)
    apart = "".join(f" · {part}" for part in subject.apart.split(" · ") if part not in ("", *said))
    title = (
        f"{setup.machine} ({setup.hardware})\n{wording.pair_label(setup)}\n"
        f"temperature {wording.temperature_label(setup.temperature)}, {setup.build}{apart}\n"
        f"{settings}"
    )
    table = Table(
        title=escape(title),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        caption=escape("\n".join(_notes(subject))) or None,
        caption_justify="left",
    )
    for column in left:
        table.add_column(column, no_wrap=True)
    for column in right:
        table.add_column(column, justify="right")
    return table


def _notes(subject: Subject) -> list[str]:
    """Return what stands below a table: what is no language model, and what is lossy."""
    setup = subject.setup
    notes = [CALIBRATION_NOTE] if setup.is_calibration else []
    notes += [wording.LOSSY_NOTE] if setup.settings.lossy else []
    for recommendation in subject.recommendations:
        if lossy := wording.lossy_text(recommendation):
            notes.append(f"{recommendation.setup.category}: {lossy}")
    return notes


def figures_of(point: CurvePoint) -> list[str]:
    """Return a configuration's `FIGURES`."""
    return [
        wording.speedup_text(point.speedup),
        wording.interval_text(point.speedup),
        wording.percent_text(point.acceptance_rate),
        wording.outputs_text((point,)),
    ]
