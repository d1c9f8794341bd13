"""The report as one HTML file: styles and charts inside, nothing loaded from anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from farm.report.axes import shared_axes
from farm.report.facts import fact_rows, machine_facts
from farm.report.files import write_atomically
from farm.report.grouping import Subject, by_subject
from farm.report.markdown import NOTHING_MEASURED
from farm.report.serving import Serving, servings
from farm.report.svg import k_curve
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
    has_k,
    labelled_verdict,
    speedup_text,
)
from farm.science.recommendation import Verdict
from farm.services.recommend import CALIBRATION_NOTE, Recommendation, WhatIfCurve
from farm.store.queries import MachineSummary

STYLE = Path(__file__).with_name("style.css")
VERDICT_CLASSES = {Verdict.ON: "on", Verdict.OFF: "off", Verdict.UNDECIDED: "unsure"}


def write_html(
    path: Path,
    recommendations: Sequence[Recommendation],
    *,
    title: str,
    generated_at: datetime,
    environment: Mapping[str, Any] | None = None,
    machines: Sequence[MachineSummary] = (),
    what_ifs: Sequence[WhatIfCurve] = (),
) -> Path:
    """Write the page to `path` in one step, so that a reader never meets half of it."""
    page = render_html(
        recommendations,
        title=title,
        generated_at=generated_at,
        environment=environment,
        machines=machines,
        what_ifs=what_ifs,
    )
    return write_atomically(path, page)


def render_html(
    recommendations: Sequence[Recommendation],
    *,
    title: str,
    generated_at: datetime,
    environment: Mapping[str, Any] | None = None,
    machines: Sequence[MachineSummary] = (),
    what_ifs: Sequence[WhatIfCurve] = (),
) -> str:
    """Return the page's text; arguments as in `farm.report.markdown.render`."""
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">Generated {f"{generated_at:%Y-%m-%d %H:%M %Z}".strip()}</p>',
    ]
    note = calibration_sentence(recommendations)
    if note:
        parts.append(f'<p class="note"><strong>Calibration.</strong> {escape(note)}</p>')
    if not recommendations and not what_ifs:
        parts.append(f"<p>{NOTHING_MEASURED}</p>")
    parts += [_subject(subject) for subject in by_subject(recommendations)]
    if what_ifs:
        parts.append(f"<h2>{WHAT_IF_HEADING}</h2><p>{WHAT_IF_NOTE}</p>")
        parts.append(_table(WHAT_IF_HEADER, what_if_rows(what_ifs)))
    reading = "".join(f"<li>{escape(line)}</li>" for line in HOW_TO_READ)
    parts.append(f"<h2>How to read this</h2><ul>{reading}</ul>")
    if machines:
        parts.append("<h2>Machines</h2>")
        for machine in machines:
            parts.append(f"<h3>{escape(machine.name)}</h3>{_pairs(machine_facts(machine))}")
    if environment:
        parts.append(f"<h2>Environment</h2>{_pairs(fact_rows(environment))}")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _charts(members: Sequence[Recommendation]) -> list[str]:
    """Return a K curve for each, "" where K is a running server's own."""
    if not has_k(members[0].setup):
        return [""] * len(members)
    axes = shared_axes([point for member in members for point in member.curve])
    return [
        k_curve(
            member.curve,
            temperature=member.setup.temperature,
            axes=axes,
            best=member.best,
            label=f"Speedup and acceptance over K for {member.setup.category}",
        )
        for member in members
    ]


def _subject(subject: Subject) -> str:
    members = subject.recommendations
    parts = [
        f"<h2>{escape(subject.label)}</h2>",
        f'<p class="lead">{escape(advice_sentence(members))}</p>',
        _pairs(subject_facts(subject)),
        "<h3>Recommendation by content</h3>",
        _table(SUMMARY_HEADER, summary_rows(members), _verdict_classes(members)),
    ]
    blocks = servings(members)
    if blocks:
        parts.append("<h3>Commands to paste</h3>")
        parts += [_serving(block) for block in blocks]
    if has_k(subject.setup):
        parts.append("<h3>K curves</h3>")
        parts.append(
            '<p class="soft">Dots are speedups, bars their 95 % intervals, the filled dot is the '
            "best K; the dashed line is the baseline's own speed. One scale for all.</p>"
        )
    curves = []
    for member, chart in zip(members, _charts(members), strict=True):
        category = escape(member.setup.category)
        calibration = f"<p class='soft'>{escape(CALIBRATION_NOTE)}</p>"
        curves.append(
            f"<figure><figcaption><h4>{category}</h4>"
            f'<p class="{VERDICT_CLASSES[member.verdict]}">{_unbroken(_caption(member))}</p>'
            f'<p class="soft">{_unbroken(reason_text(member))}</p>'
            f"{calibration * member.setup.is_calibration}</figcaption>{chart}</figure>"
        )
    parts.append(f'<div class="curves">{"".join(curves)}</div>')
    parts.append("<h3>Parity</h3>")
    parts.append(_table(PARITY_HEADER, parity_rows(members)))
    details = "".join(
        f"<h4>{escape(member.setup.category)}</h4>"
        f"{_table(curve_header(member), curve_rows(member))}"
        for member in members
    )
    parts.append(f"<details><summary>Every configuration measured</summary>{details}</details>")
    return "\n".join(parts)


def _caption(recommendation: Recommendation) -> str:
    if recommendation.verdict is Verdict.ON and recommendation.best is not None:
        return f"{labelled_verdict(recommendation)}: {speedup_text(recommendation.best.speedup)}"
    return labelled_verdict(recommendation)


def _unbroken(text: str) -> str:
    """Return escaped text whose "K = 8" stays on one line."""
    return escape(text).replace(" = ", "&nbsp;=&nbsp;")


def _verdict_classes(recommendations: Sequence[Recommendation]) -> list[str]:
    return [VERDICT_CLASSES[item.verdict] for item in recommendations]


def _serving(block: Serving) -> str:
    use = "speculation on" if block.speculates else "speculation off"
    parts = [f'<p class="use">For {escape(", ".join(block.categories))} ({use}):</p>']
    parts += [f'<p class="soft">{escape(note)}</p>' for note in block.notes]
    if block.command is not None:
        parts.append(f"<pre><code>{escape(block.command)}</code></pre>")
    return "".join(parts)


def _table(
    header: Sequence[str], rows: Sequence[Sequence[str]], second_classes: Sequence[str] = ()
) -> str:
    """Return a table; second_classes style the second cell of each row (the verdict)."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = []
    for index, row in enumerate(rows):
        style = f' class="{second_classes[index]}"' if second_classes else ""
        cells = [
            f"<td{style if column == 1 else ''}>{escape(cell)}</td>"
            for column, cell in enumerate(row)
        ]
        body.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _pairs(rows: Sequence[tuple[str, str]]) -> str:
    return f"<dl>{''.join(f'<dt>{escape(k)}</dt><dd>{escape(v)}</dd>' for k, v in rows)}</dl>"
