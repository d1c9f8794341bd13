"""farm results, results show, results diff: what was measured, how, and what differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from farm.cli.recommend import FIGURES, SweepOption, figures_of, measured, table_of
from farm.cli.session import JsonOption, open_session, out, print_json
from farm.cli.what_if import print_what_ifs
from farm.domain.provenance import flat
from farm.report import wording
from farm.report.grouping import by_subject
from farm.report.provenance import comparison_sentence, fact_name, fact_text, whole_commands
from farm.services.job_results import JobResult, compare, job_result
from farm.services.recommend import CurvePoint
from farm.store.database import reading

DETAILS = (*FIGURES, "tok/round", "tok/s", "plain", "job")
ALL_USERS = ("all users", "all, plain")
# A configuration may rest on any number of jobs; --json has all.
MAX_JOBS = 3

app = typer.Typer(invoke_without_command=True, add_completion=False, pretty_exceptions_enable=False)

JobArgument = Annotated[int, typer.Argument(help="A job's number.")]


@app.callback()
def results(context: typer.Context, sweep: SweepOption = None, as_json: JsonOption = False) -> None:
    """List every measured configuration: the curves behind the recommendations."""
    if context.invoked_subcommand is not None:
        return
    found = measured(sweep)
    if as_json:
        print_json([recommendation.to_payload() for recommendation in found.recommendations])
        return
    for subject in by_subject(found.recommendations):
        several = subject.setup.settings.concurrent_requests > 1
        table = table_of(subject, ["content", "configuration"], DETAILS + ALL_USERS * several)
        for recommendation in subject.recommendations:
            setup = recommendation.setup
            for point in recommendation.curve:
                name = wording.configuration(point.speculation, setup.temperature)
                table.add_row(setup.category, name, *_details(point), *_together(point))
        out.print(table)
    print_what_ifs(found.what_ifs)


@app.command()
def show(job: JobArgument, as_json: JsonOption = False) -> None:
    """Show one job's result and everything that shaped it."""
    with reading(open_session().database()) as session:
        found = job_result(session, job)
    if as_json:
        print_json(found.to_payload())
        return
    out.print(escape(_headline(found)))
    _print("result", {name: (value,) for name, value in _figures(found).items()})
    told = found.attempt.provenance
    if told is None:
        out.print("It was measured before conditions were recorded.")
    else:
        conditions = whole_commands(asdict(told.conditions)) | {"prompts": told.prompts}
        title = f"conditions {told.conditions.digest[:12]}"
        _print(title, {name: (value,) for name, value in flat(conditions).items()})
        plain = flat(whole_commands(told.conditions.parameters))
        own = flat(whole_commands({**told.speculative, "farm_version": told.farm_version}))
        rows = {name: (value,) for name, value in own.items() if plain.get(name) != value}
        _print("speculative arm, where it is not as the baseline", rows)
    before, after = (flat(reading) for reading in found.readings.values())
    readings = {name: (before.get(name), after.get(name)) for name in {**before, **after}}
    _print("readings", readings, ("before", "after"))
    checks = flat(found.attempt.checks or {})
    _print("checks", {name: (value,) for name, value in checks.items()})


@app.command()
def diff(a: JobArgument, b: JobArgument, as_json: JsonOption = False) -> None:
    """Show what differs between two jobs' results, and whether they can be compared."""
    with reading(open_session().database()) as session:
        results = [job_result(session, job) for job in (a, b)]
    found = compare(*results)
    sentence = comparison_sentence(found, a, b)
    if as_json:
        both = [result.to_payload() for result in results]
        print_json(asdict(found) | {"reason": sentence, "a": both[0], "b": both[1]})
        return
    for result in results:
        out.print(escape(_headline(result)))
    heads = (f"job {a}", f"job {b}")
    figures_a, figures_b = (_figures(result) for result in results)
    _print("result", {name: (figures_a[name], figures_b[name]) for name in figures_a}, heads)
    _print("asked for", found.asked, heads)
    _print("conditions", found.conditions, heads)
    _print("speculative arm", found.speculative, heads)
    _print("readings", found.readings, heads)
    out.print(escape(sentence))


def _headline(found: JobResult) -> str:
    setup = found.setup
    configuration = wording.configuration(found.spec.speculation, setup.temperature)
    return (
        f"job {found.attempt.job_id}: {wording.pair_label(setup)}, {configuration}, "
        f"{setup.category}, temperature {wording.temperature_label(setup.temperature)}, on "
        f"{setup.machine} ({setup.hardware})"
    )


def _figures(found: JobResult) -> dict[str, str]:
    details = zip(DETAILS[:-1], _details(found.point), strict=False)
    return dict(details) | {"prompts": str(found.point.prompts)}


def _details(point: CurvePoint) -> list[str]:
    more = f" +{len(point.jobs) - MAX_JOBS}" if len(point.jobs) > MAX_JOBS else ""
    return [
        *figures_of(point),
        wording.number_text(point.tokens_per_round, 2),
        wording.number_text(point.speculative_tok_s),
        wording.number_text(point.baseline_tok_s),
        ", ".join(map(str, point.jobs[:MAX_JOBS])) + more,
    ]


def _together(point: CurvePoint) -> list[str]:
    """Return the tokens per second of all users, nothing where there is but one."""
    together = (point.server_speculative_tok_s, point.server_baseline_tok_s)
    return [wording.number_text(speed) for speed in together if speed is not None]


def _print(title: str, rows: Mapping[str, tuple[Any, ...]], heads: Sequence[str] = ("",)) -> None:
    """Print facts, one per row; nothing where there is none."""
    if not rows:
        return
    table = Table(box=box.SIMPLE_HEAD, show_header=any(heads), title=escape(title))
    table.title_justify, table.title_style = "left", "bold"
    for column in ("", *heads):
        table.add_column(column, overflow="fold")
    for name, values in rows.items():
        table.add_row(*map(escape, (fact_name(name), *(fact_text(name, v) for v in values))))
    out.print(table)
