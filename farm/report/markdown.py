"""The report as Markdown: every figure is the recommendation's own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from farm.report.facts import fact_rows, machine_facts
from farm.report.grouping import Subject, by_subject
from farm.report.serving import Serving, servings
from farm.report.tables import (
    PARITY_HEADER,
    SUMMARY_HEADER,
    curve_header,
    curve_rows,
    parity_rows,
    reason_text,
    subject_facts,
    summary_rows,
)
from farm.report.what_if import WHAT_IF_HEADER, WHAT_IF_HEADING, WHAT_IF_NOTE, what_if_rows
from farm.report.wording import (
    HOW_TO_READ,
    advice_sentence,
    calibration_sentence,
    labelled_verdict,
    plain,
)
from farm.services.recommend import Recommendation, WhatIfCurve
from farm.store.queries import MachineSummary

NOTHING_MEASURED = "No job has finished yet, so there is nothing to report."


def render(
    recommendations: Sequence[Recommendation],
    *,
    title: str,
    generated_at: datetime,
    environment: Mapping[str, Any] | None = None,
    machines: Sequence[MachineSummary] = (),
    what_ifs: Sequence[WhatIfCurve] = (),
) -> str:
    """Return the whole report as Markdown text.

    environment: facts of the runs (driver, power, load), nested as they are; None leaves the
    section out.
    """
    parts = [f"# {escape(title)}", f"Generated {generated_at:%Y-%m-%d %H:%M %Z}".strip()]
    note = calibration_sentence(recommendations)
    if note:
        parts.append(f"> **Calibration.** {note}")
    if not recommendations and not what_ifs:
        parts.append(NOTHING_MEASURED)
    for subject in by_subject(recommendations):
        parts += _subject(subject)
    if what_ifs:
        parts += [f"## {WHAT_IF_HEADING}", WHAT_IF_NOTE]
        parts.append(_table(WHAT_IF_HEADER, what_if_rows(what_ifs)))
    parts += ["## How to read this", _list(HOW_TO_READ)]
    if machines:
        parts.append("## Machines")
        for machine in machines:
            parts += [f"### {escape(machine.name)}", _pairs(machine_facts(machine))]
    if environment:
        parts += ["## Environment", _pairs(fact_rows(environment))]
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Return text that Markdown shows as it is; names come from files of any origin."""
    return re.sub(r"([\\`*_\[\]<>|#!~])", r"\\\1", plain(text))


def _subject(subject: Subject) -> list[str]:
    members = subject.recommendations
    parts = [
        f"## {escape(subject.label)}",
        _list([f"{name}: {escape(value)}" for name, value in subject_facts(subject)], escaped=True),
        escape(advice_sentence(members)),
        "### Recommendation by content",
        _table(SUMMARY_HEADER, summary_rows(members)),
    ]
    blocks = servings(members)
    if blocks:
        parts.append("### Commands to paste")
        for block in blocks:
            parts += _serving(block)
    parts.append("### K curves")
    for member in members:
        parts += [
            f"**{escape(member.setup.category)}**: {escape(labelled_verdict(member))} "
            f"({escape(reason_text(member))})",
            _table(curve_header(member), curve_rows(member)),
        ]
    return [*parts, "### Parity", _table(PARITY_HEADER, parity_rows(members))]


def _serving(block: Serving) -> list[str]:
    use = "speculation on" if block.speculates else "speculation off"
    parts = [f"For {escape(', '.join(block.categories))} ({use}):"]
    parts += [escape(note) for note in block.notes]
    if block.command is not None:
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", block.command)), default=0))
        parts.append(f"{fence}sh\n{block.command}\n{fence}")
    return parts


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose first two columns read left, the figures right."""
    rule = ["---" if index < 2 else "---:" for index in range(len(header))]
    lines = [header, rule, *([escape(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _pairs(rows: Sequence[tuple[str, str]]) -> str:
    return _table(("Fact", "Value"), rows)


def _list(items: Sequence[str], *, escaped: bool = False) -> str:
    return "\n".join(f"- {item if escaped else escape(item)}" for item in items)
