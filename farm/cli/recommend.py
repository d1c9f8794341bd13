"""farm recommend, results: what the measurements say."""

from __future__ import annotations

from typing import Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from farm.cli.session import JsonOption, open_session, out, print_json
from farm.domain.measurement import Parity
from farm.errors import UserError
from farm.services.recommend import (
    CALIBRATION_NOTE,
    CurvePoint,
    Recommendation,
    recommendations,
)
from farm.store.database import reading

SweepOption = Annotated[int | None, typer.Option("--sweep", help="Only this sweep's jobs.")]


def recommend(sweep: SweepOption = None, as_json: JsonOption = False) -> None:
    """Say which K to use for which content on each machine, or to leave speculation off."""
    found = _measured(sweep)
    if as_json:
        print_json([recommendation.to_payload() for recommendation in found])
        return
    print_recommendations(found)


def results(sweep: SweepOption = None, as_json: JsonOption = False) -> None:
    """List every measured configuration: the curves behind the recommendations."""
    found = _measured(sweep)
    if as_json:
        print_json([recommendation.to_payload() for recommendation in found])
        return
    for group in _by_pair(found):
        table = _table(_title(group[0]), ["content"], ["K", "p_min", *_DETAILS])
        for recommendation in group:
            for point in recommendation.curve:
                speculation = point.speculation
                table.add_row(
                    recommendation.setup.category,
                    str(speculation.n_max),
                    f"{speculation.p_min:g}",
                    *_details(point),
                )
        _print(table, group[0])


def print_recommendations(found: list[Recommendation]) -> None:
    """Print one table per machine, pair and temperature."""
    for group in _by_pair(found):
        table = _table(_title(group[0]), ["content", "use"], _FIGURES)
        for recommendation in group:
            best = recommendation.best
            figures = _figures(best) if best else ["-"] * len(_FIGURES)
            table.add_row(recommendation.setup.category, _advice(recommendation), *figures)
        _print(table, group[0])


_FIGURES = ["speedup", "95 % interval", "accepted", "identical"]
_DETAILS = [*_FIGURES, "tok/round", "tok/s", "plain"]


def _measured(sweep: int | None) -> list[Recommendation]:
    with reading(open_session().database()) as session:
        found = recommendations(session, sweep)
    if not found:
        raise UserError(
            "Nothing is measured yet; submit a sweep with 'farm submit FILE' and look at 'farm "
            "status'."
        )
    return found


def _by_pair(found: list[Recommendation]) -> list[list[Recommendation]]:
    groups: dict[tuple[object, ...], list[Recommendation]] = {}
    for recommendation in found:
        setup = recommendation.setup
        key = (
            setup.machine,
            setup.target_digest,
            setup.draft_digest,
            setup.kind,
            setup.temperature,
            setup.build_digest,
            setup.settings,
            setup.generate_tokens,
        )
        groups.setdefault(key, []).append(recommendation)
    return list(groups.values())


def _title(recommendation: Recommendation) -> str:
    setup = recommendation.setup
    pair = setup.target + (f" + {setup.draft}" if setup.draft else f" ({setup.kind})")
    return (
        f"{escape(setup.machine)} ({escape(setup.hardware)})\n{escape(pair)}, "
        f"temperature {setup.temperature:g}, {setup.build}"
    )


def _table(title: str, left: list[str], right: list[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for column in left:
        table.add_column(column, no_wrap=True)
    for column in right:
        table.add_column(column, justify="right")
    return table


def _print(table: Table, recommendation: Recommendation) -> None:
    if recommendation.setup.is_calibration:
        table.caption = CALIBRATION_NOTE
        table.caption_justify = "left"
    out.print(table)


def _advice(recommendation: Recommendation) -> str:
    if recommendation.verdict == "on" and recommendation.best:
        others = ", ".join(str(point.speculation.n_max) for point in recommendation.as_good)
        return f"K={recommendation.best.speculation.n_max}" + (f" (or {others})" if others else "")
    if recommendation.verdict == "off":
        return f"off: {recommendation.reason}"
    return recommendation.reason


def _figures(point: CurvePoint) -> list[str]:
    interval = point.speedup
    return [
        f"{interval.estimate:.2f}x" if interval else "-",
        f"{interval.low:.2f}-{interval.high:.2f}" if interval else "too few prompts",
        _number(point.acceptance_rate and point.acceptance_rate * 100, "{:.0f} %"),
        _parity(point.parity),
    ]


def _details(point: CurvePoint) -> list[str]:
    return [
        *_figures(point),
        _number(point.tokens_per_round, "{:.2f}"),
        _number(point.speculative_tok_s, "{:.1f}"),
        _number(point.baseline_tok_s, "{:.1f}"),
    ]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _parity(counts: dict[str, int]) -> str:
    compared = sum(count for finding, count in counts.items() if finding != Parity.NOT_COMPARED)
    if not compared:
        return "not compared"
    exact = counts.get(Parity.EXACT, 0)
    rest = ", ".join(
        f"{counts[finding]} {finding}"
        for finding in (Parity.NEAR_TIE, Parity.MISMATCH)
        if counts.get(finding)
    )
    return f"{exact}/{compared}" + (f", {rest}" if rest else "")
