from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pandas.api.types import is_numeric_dtype
from streamlit.testing.v1 import AppTest

from dashboard.launch import APP
from farm.domain.decoding import WhatIf
from farm.report.wording import labelled_verdict, pair_label
from farm.services.recommend import CALIBRATION_NOTE, Recommendation
from farm.store.database import open_database
from tests.dashboard.seed import DRAFT, LAPTOP, WORKSTATION, empty
from tests.farm.sample_farm import add_machine, measure, paired, queue_jobs, spec

PAGES = ("recommendations", "jobs", "machines")
TIMEOUT_S = 60


def opened(
    monkeypatch: pytest.MonkeyPatch, url: str, page: str = "", query: dict[str, Any] | None = None
) -> AppTest:
    monkeypatch.setenv("FARM_DATABASE_URL", url)
    if page:
        app = AppTest.from_string(
            f"from dashboard.views import {page}\n{page}.page()", default_timeout=TIMEOUT_S
        )
    else:
        app = AppTest.from_file(str(APP), default_timeout=TIMEOUT_S)
    for name, value in (query or {}).items():
        app.query_params[name] = value
    app.run()
    assert not app.exception
    return app


def words(app: AppTest) -> str:
    kinds = ("header", "subheader", "markdown", "text", "caption", "warning", "info", "code")
    return "\n".join(str(element.value) for kind in kinds for element in app.get(kind))


def headline_rows(app: AppTest) -> list[tuple[str, str]]:
    """Return (content, verdict) over the headline tables, which alone have a verdict column."""
    return [
        (row["Content"], row["Verdict"])
        for table in app.dataframe
        if "Verdict" in table.value
        for _, row in table.value.iterrows()
    ]


def test_the_entry_shows_every_recommendation(
    monkeypatch: pytest.MonkeyPatch, farm_url: str, advice: list[Recommendation]
) -> None:
    app = opened(monkeypatch, farm_url)
    assert app.header[0].value == "Recommendations"
    expected = [(item.setup.category, labelled_verdict(item)) for item in advice]
    assert headline_rows(app) == expected
    assert len(expected) == 8 + 3 + 3 + 2


def test_figures_are_the_recommendations_own(
    monkeypatch: pytest.MonkeyPatch, farm_url: str, advice: list[Recommendation]
) -> None:
    app = opened(monkeypatch, farm_url, "recommendations", {"machine": WORKSTATION.name})
    row = next(t for t in app.dataframe if "Verdict" in t.value).value.iloc[0]
    best = next(item for item in advice if item.setup.machine == WORKSTATION.name).best
    assert best is not None
    assert best.speedup is not None
    assert best.acceptance_rate is not None
    assert row["Best K"] == best.speculation.n_max == 8
    assert row["Speedup"] == best.speedup.estimate
    assert row["95 % interval"] == f"{best.speedup.low:.2f} to {best.speedup.high:.2f}"
    assert row["Acceptance"] == 100 * best.acceptance_rate
    assert row["Tokens/round"] == best.tokens_per_round
    assert row["Baseline tok/s"] == best.baseline_tok_s
    assert row["Speculative tok/s"] == best.speculative_tok_s
    assert row["Parity"] == "exact 6/6"
    assert row["Prompts"] == 6


def test_query_parameters_filter_and_choose(
    monkeypatch: pytest.MonkeyPatch, farm_url: str, advice: list[Recommendation]
) -> None:
    pair = next(
        pair_label(item.setup)
        for item in advice
        if item.setup.draft == DRAFT and not item.setup.is_calibration
    )
    query = {"machine": LAPTOP.name, "pair": pair, "temperature": "0", "category": "chat"}
    app = opened(monkeypatch, farm_url, "recommendations", query)
    assert [content for content, _ in headline_rows(app)] == ["chat"]
    assert not app.warning
    assert app.multiselect(key="machine").value == [LAPTOP.name]


def test_setup_parameter_chooses_whose_curves(
    monkeypatch: pytest.MonkeyPatch, farm_url: str, advice: list[Recommendation]
) -> None:
    everything = opened(monkeypatch, farm_url, "recommendations")
    last = everything.selectbox(key="setup").options[-1]
    app = opened(monkeypatch, farm_url, "recommendations", {"setup": last})
    assert "temperature 0.7" in last
    assert app.selectbox(key="setup").value == last
    assert "--temp 0.7" in words(app)


def test_a_filter_that_leaves_nothing_says_so(
    monkeypatch: pytest.MonkeyPatch, farm_url: str
) -> None:
    query = {"machine": LAPTOP.name, "temperature": "0.7"}
    app = opened(monkeypatch, farm_url, "recommendations", query)
    assert "No result fits" in app.info[0].value


def test_calibration_is_labelled_in_note_table_and_commands(
    monkeypatch: pytest.MonkeyPatch, farm_url: str
) -> None:
    pair = "cal-7b-target + cal-0.5b-draft (calibration)"
    app = opened(monkeypatch, farm_url, "recommendations", {"pair": pair})
    assert CALIBRATION_NOTE in app.warning[0].value
    rows = headline_rows(app)
    assert rows
    assert all(verdict.endswith("(calibration)") for _, verdict in rows)
    text = words(app)
    assert "Calibration, not advice" in text
    assert "An example only" in text
    assert "Speculation pays" not in text


def test_jobs_show_progress_states_and_errors(
    monkeypatch: pytest.MonkeyPatch, farm_url: str
) -> None:
    app = opened(monkeypatch, farm_url, "jobs")
    counts = {metric.label: metric.value for metric in app.metric}
    assert counts == {"Queued": "3", "Running": "1", "Done": "53", "Failed": "1", "Cancelled": "1"}
    sweeps, errors, jobs = (table.value for table in app.dataframe)
    assert sweeps["Progress"].tolist() == pytest.approx([100 / 3, 100, 100, 100, 100])
    assert errors["Error"].tolist() == ["crash", "too-little-memory"]
    assert "18.2 GiB" in errors["Message"].iloc[1]
    assert len(jobs) == 59
    assert jobs["Job"].is_monotonic_decreasing


def test_jobs_filter_by_sweep_and_state(monkeypatch: pytest.MonkeyPatch, farm_url: str) -> None:
    query = {"sweep": "laptop-night (#5)", "state": ["failed", "queued"]}
    app = opened(monkeypatch, farm_url, "jobs", query)
    jobs = app.dataframe[-1].value
    assert sorted(jobs["State"]) == ["failed", "queued", "queued", "queued"]
    assert len(app.dataframe[0].value) == 1


def test_machines_show_their_facts(monkeypatch: pytest.MonkeyPatch, farm_url: str) -> None:
    app = opened(monkeypatch, farm_url, "machines")
    assert app.dataframe[0].value["Machine"].tolist() == [LAPTOP.name, WORKSTATION.name]
    facts = dict(app.table[1].value.itertuples(index=False))
    assert facts["GPUs"] == "NVIDIA GeForce RTX 4090, 24.0 GiB, compute capability 8.9"
    assert facts["Memory"] == "64.0 GiB"


def test_what_ifs_stand_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    url = empty(tmp_path / "farm.db")
    engine = open_database(url)
    made_up = replace(spec().speculation, what_if=WhatIf(length=3.5))
    queue_jobs(engine, [spec(speculation=made_up)])
    measure(engine, add_machine(engine), paired((3.0,) * 6))
    engine.dispose()
    app = opened(monkeypatch, url, "recommendations")
    assert "What if: synthetic acceptance; the text is not valid output" in words(app)
    assert headline_rows(app) == []
    (table,) = app.dataframe
    (row,) = (row for _, row in table.value.iterrows())
    assert row["Configuration"] == "K = 4, what if length 3.5"
    assert row["Speedup"] == pytest.approx(3.0)
    assert row["Speculative tok/s"] == pytest.approx(3 * row["Baseline tok/s"])
    numbers = ("Speedup", "Acceptance", "Tokens/round", "Baseline tok/s", "Speculative tok/s")
    assert all(is_numeric_dtype(table.value[column]) for column in numbers)


@pytest.mark.parametrize("page", PAGES)
def test_an_empty_farm_names_the_next_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, page: str
) -> None:
    app = opened(monkeypatch, empty(tmp_path / "farm.db"), page)
    assert app.code[0].value == ("farm worker" if page == "machines" else "farm submit sweep.yaml")


@pytest.mark.parametrize("page", PAGES)
def test_a_missing_file_is_explained_and_not_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, page: str
) -> None:
    path = tmp_path / "elsewhere" / "farm.db"
    app = opened(monkeypatch, f"sqlite:///{path}", page)
    assert app.subheader[0].value == "No database yet"
    assert app.code[0].value == "farm db upgrade"
    assert not path.parent.exists()


@pytest.mark.parametrize("page", PAGES)
def test_a_database_without_tables_is_explained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, page: str
) -> None:
    path = tmp_path / "farm.db"
    path.touch()
    app = opened(monkeypatch, f"sqlite:///{path}", page)
    assert app.subheader[0].value == "The database has no tables yet"
    assert app.code[0].value == "farm db upgrade"


def test_another_migration_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    url = empty(tmp_path / "farm.db")
    with sqlite3.connect(tmp_path / "farm.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    app = opened(monkeypatch, url, "jobs")
    assert "migration 9999" in words(app)
    assert app.code[0].value == "farm db upgrade"


@pytest.mark.parametrize(
    ("url", "title"),
    [
        ("postgresql://farm:secret@127.0.0.1:1/farm", "The database can't be opened"),
        ("mysql://farm@127.0.0.1/farm", "The database can't be opened"),
        ("no url at all", "The database can't be opened"),
    ],
)
def test_an_unreachable_database_is_explained(
    monkeypatch: pytest.MonkeyPatch, url: str, title: str
) -> None:
    app = opened(monkeypatch, url, "recommendations")
    assert app.subheader[0].value == title
    assert "secret" not in words(app)


def test_a_file_of_another_kind_is_explained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "farm.db"
    path.write_text("This is a letter, not a database. " * 100)
    app = opened(monkeypatch, f"sqlite:///{path}", "recommendations")
    assert app.subheader[0].value == "The database can't be opened"


def test_without_a_url_the_farm_s_home_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FARM_HOME", str(tmp_path))
    empty(tmp_path / "farm.db")
    app = opened(monkeypatch, "", "recommendations")
    assert app.subheader[0].value == "Nothing measured yet"
