from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest

from farm.domain.decoding import Settings, WhatIf
from farm.errors import InfrastructureError
from farm.report.bundle import write_report
from farm.report.html import render_html
from farm.report.markdown import render
from farm.report.wording import labelled_verdict
from farm.science.recommendation import Verdict
from farm.services.recommend import CALIBRATION_NOTE, Recommendation, WhatIfCurve
from farm.store.queries import MachineSummary

GENERATED_AT = datetime(2025, 1, 2, 3, 4, tzinfo=UTC)
Make = Callable[..., Recommendation]
Stored = tuple[list[Recommendation], list[MachineSummary]]
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """The page's elements, attributes, table cells and text; tags must nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    def count(self, tag: str) -> int:
        return sum(seen == tag for seen, _ in self.seen)


def expected_row(item: Recommendation) -> list[str]:
    best = item.best
    assert best is not None
    assert best.speedup is not None
    assert best.acceptance_rate is not None
    parity = "exact 6/6" if item.setup.temperature == 0 else "not compared"
    if best.parity.get("near-tie"):
        parity = "exact 5/6, near-tie 1"
    return [
        item.setup.category,
        labelled_verdict(item),
        str(best.speculation.n_max),
        f"{best.speedup.estimate:.2f}x",
        f"{best.speedup.low:.2f} to {best.speedup.high:.2f}",
        f"{100 * best.acceptance_rate:.1f} %",
        f"{best.tokens_per_round:.2f}",
        f"{best.baseline_tok_s:.1f}",
        f"{best.speculative_tok_s:.1f}",
        parity,
        "6",
    ]


def html_of(items: list[Recommendation], title: str = "Report") -> str:
    return render_html(items, title=title, generated_at=GENERATED_AT)


def test_both_reports_hold_every_recommendation_s_own_figures(stored: Stored) -> None:
    items, machines = stored
    markdown = render(items, title="Report", generated_at=GENERATED_AT, machines=machines)
    html = Page(html_of(items))
    for item in items:
        row = expected_row(item)
        assert row in html.rows
        assert f"| {' | '.join(row)} |" in markdown
    assert "Generated 2025-01-02 03:04 UTC" in markdown


def test_mismatches_are_shown_and_never_recommended(stored: Stored) -> None:
    items, _ = stored
    page = Page(html_of(items))
    assert ["tool-calls", "output changed", "23", "0", "1", "0"] in page.rows
    assert ["math-reasoning", "rounding only", "20", "4", "0", "0"] in page.rows
    (row,) = (row for row in page.rows if "changed the output" in row)
    assert row[0] == "K = 16"
    assert "exact 5/6, mismatch 1" in row


def test_html_loads_nothing_and_runs_nothing(stored: Stored) -> None:
    items, machines = stored
    text = render_html(
        items, title="Report", generated_at=GENERATED_AT, machines=machines, environment={"a": 1}
    )
    assert not re.search(r"https?://|//cdn|@import|url\(|<script|<link|<img|<iframe", text)
    page = Page(text)
    assert not any({"src", "href", "xlink:href"} & set(attributes) for _, attributes in page.seen)
    assert any("default-src 'none'" in (a.get("content") or "") for _, a in page.seen)
    assert page.count("svg") == len(items)


def test_names_from_files_are_text_in_both_reports(make: Make) -> None:
    hostile = "<script>alert(1)</script>|![x](http://example.org/x.png)`"
    item = make(target=hostile, machine=hostile, category=hostile)
    html = html_of([item], title=hostile)
    assert "<script>" not in html
    Page(html)
    markdown = render([item], title=hostile, generated_at=GENERATED_AT)
    outside_code = re.sub(r"(?ms)^(`{3,})sh$.*?^\1$", "", markdown)
    assert "<script>" not in outside_code.replace("\\<", "")
    assert "![" not in outside_code.replace("\\!", "")


def test_calibration_is_labelled_in_both_reports(make: Make) -> None:
    item = make(is_calibration=True)
    for text in (html_of([item]), render([item], title="R", generated_at=GENERATED_AT)):
        assert "K = 8 (calibration)" in text.replace("\\(", "(").replace("&nbsp;", " ")
        assert CALIBRATION_NOTE.split(":")[0] in text
        assert "An example only" in text
        assert "Speculation pays" not in text


def test_off_and_too_few_prompts_are_said_in_words(make: Make) -> None:
    off = make(verdict=Verdict.OFF, category="chat")
    few = make(verdict=Verdict.UNDECIDED, speedup=None, category="tool-calls")
    rows = Page(html_of([off, few])).rows
    assert rows[1][:2] == ["chat", "speculation off"]
    assert rows[2] == ["tool-calls", "too few prompts", *["–"] * 7, "exact 24/24", "24"]


def test_several_at_once_are_named_and_have_a_total(make: Make) -> None:
    item = make(settings=Settings(concurrent_requests=4))
    (point,) = item.curve
    totals = replace(point, server_baseline_tok_s=101.25, server_speculative_tok_s=202.5)
    item = replace(item, best=totals, curve=(totals,))
    html, markdown = html_of([item]), render([item], title="R", generated_at=GENERATED_AT)
    assert [row for row in Page(html).rows if row[-2:] == ["101.2", "202.5"]]
    assert "| 101.2 | 202.5 |" in markdown
    for text in (html, markdown):
        assert "target + draft, 4 at once" in text
        assert "All users: speculative tok/s" in text
        assert "-np 4 -c 8192" in text
    assert "All users: speculative" not in html_of([make()])


def test_what_ifs_stand_apart_in_both_reports(make: Make) -> None:
    (point,) = make().curve
    speculation = replace(point.speculation, what_if=WhatIf(length=3.5))
    curve = WhatIfCurve(make().setup, (replace(point, speculation=speculation),))
    html = render_html([make()], title="R", generated_at=GENERATED_AT, what_ifs=[curve])
    markdown = render([make()], title="R", generated_at=GENERATED_AT, what_ifs=[curve])
    for text in (html, markdown):
        real, apart = text.split("What if: synthetic acceptance; the text is not valid output")
        assert "what if length 3.5" in apart
        assert "what if" not in real
    for text in (
        render_html([], title="R", generated_at=GENERATED_AT, what_ifs=[curve]),
        render([], title="R", generated_at=GENERATED_AT, what_ifs=[curve]),
    ):
        assert "No job has finished yet" not in text
        assert "what if length 3.5" in text


def test_an_empty_report_says_so() -> None:
    assert "No job has finished yet" in html_of([])
    assert "No job has finished yet" in render([], title="R", generated_at=GENERATED_AT)


def test_environment_and_machines_are_listed_with_units(stored: Stored) -> None:
    items, machines = stored
    environment = {"power": {"governor": "performance", "limit_w": None}, "turbo": True}
    markdown = render(
        items[:1],
        title="R",
        generated_at=GENERATED_AT,
        machines=machines,
        environment=environment,
    )
    assert "| power.governor | performance |" in markdown
    assert "| power.limit\\_w | – |" in markdown
    assert "| turbo | yes |" in markdown
    assert "| Memory | 64.0 GiB |" in markdown


def test_write_report_leaves_two_whole_files(stored: Stored, tmp_path: Path) -> None:
    items, machines = stored
    for _ in range(2):
        paths = write_report(
            tmp_path / "new", items, title="R", generated_at=GENERATED_AT, machines=machines
        )
    assert [path.name for path in paths] == ["report.md", "report.html"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "report.html",
        "report.md",
    ]
    assert paths[1].read_text(encoding="utf-8").endswith("</html>\n")


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InfrastructureError, match="choose another folder"):
        write_report(tmp_path / "file", [], title="R", generated_at=GENERATED_AT)
