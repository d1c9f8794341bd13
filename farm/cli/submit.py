"""farm submit: a sweep file in, jobs out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from farm.cli.session import (
    JsonOption,
    open_session,
    out,
    plan_with_progress,
    print_json,
)
from farm.cli.status import watch
from farm.domain.job import JobSpec
from farm.errors import UserError
from farm.paths import resource
from farm.queue.doorbell import ring_due
from farm.report.wording import changed_settings
from farm.services.forecast import Forecast, forecast
from farm.services.plan import Plan
from farm.services.submit import submit as store_plan
from worker.probe.bandwidth import memory_bandwidth_gb_s

SHOWN_JOBS = 40


def submit(
    file: Annotated[Path | None, typer.Argument(help="A sweep file (YAML).")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the jobs, the time and what can't run.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Queue this sweep's failed jobs again.")
    ] = False,
    watch_it: Annotated[bool, typer.Option("--watch", help="Stay and show progress.")] = False,
    example: Annotated[
        bool, typer.Option("--example", help="Print a sweep to start from.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Submit a sweep: every cell becomes a job; jobs that exist already are not added again."""
    if example:
        print((resource("configs") / "sweeps" / "example.yaml").read_text(), end="")
        return
    if file is None:
        raise UserError("Name a sweep file; 'farm submit --example' prints one to start from.")
    session = open_session()
    plan = plan_with_progress(file)
    if dry_run:
        _show_plan(
            plan,
            forecast(plan, session.settings.database_url, memory_bandwidth_gb_s),
            as_json=as_json,
        )
        return
    database = session.database()
    submission = store_plan(database, plan, retry_failed=retry_failed)
    if as_json:
        print_json(vars(submission))
    else:
        again = f", {submission.requeued} queued again" if submission.requeued else ""
        out.print(
            f"sweep {submission.sweep_id}: {submission.total} jobs, {submission.new} new, "
            f"{submission.existing} there already{again}"
        )
        _say_left_out(plan)
    ring_due(database, session.celery())
    if watch_it:
        watch(session, submission.sweep_id)


def _show_plan(plan: Plan, estimate: Forecast, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "name": plan.name,
                "jobs": [spec.to_payload() | {"key": spec.key} for spec in plan.jobs],
                "left_out": plan.left_out,
                "refused": [vars(refusal) for refusal in plan.refusals],
                "estimate": vars(estimate),
            }
        )
        return
    table = Table(title=f"{plan.name}: {len(plan.jobs)} jobs", title_justify="left")
    for column in ("machine", "pair", "content", "kind"):
        # File names often differ at their end alone, which must not be cut off.
        table.add_column(column, overflow="fold")
    for column in ("K", "p_min", "temp.", "prompts", "tokens"):
        table.add_column(column, justify="right")
    table.add_column("settings")
    for spec in plan.jobs[:SHOWN_JOBS]:
        table.add_row(
            spec.machine,
            spec.target.name + (f" + {spec.draft.name}" if spec.draft else ""),
            spec.category,
            spec.speculation.kind,
            spec.speculation.k_text,
            f"{spec.speculation.p_min:g}",
            f"{spec.sampling.temperature:g}",
            str(len(spec.prompts) * spec.repeats),
            str(spec.generate_tokens),
            ", ".join([*_n_min(spec), *changed_settings(spec.settings)]),
        )
    out.print(table)
    if len(plan.jobs) > SHOWN_JOBS:
        out.print(f"... and {len(plan.jobs) - SHOWN_JOBS} more; --json lists all.")
    _say_left_out(plan)
    for line in estimate.lines():
        out.print(line)
    for refusal in plan.refusals:
        out.print(
            f"[bold]can't run:[/] {refusal.target} + {refusal.draft}: {'; '.join(refusal.reasons)}"
        )
    out.print("Dry run: nothing was submitted.")


def _n_min(spec: JobSpec) -> list[str]:
    return [f"n_min {spec.speculation.n_min}"] if spec.speculation.n_min else []


def _say_left_out(plan: Plan) -> None:
    if plan.left_out:
        out.print(f"cells left out because their n_min is above their K: {plan.left_out}")
