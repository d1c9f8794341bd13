"""What the pages read: store queries behind short caches. Nothing here writes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import streamlit as st
from sqlalchemy import Engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from farm.errors import SpecfarmError
from farm.paths import home
from farm.services.recommend import Findings
from farm.services.recommend import findings as judge
from farm.store.database import open_database, reading
from farm.store.migrate import current, head
from farm.store.queries import (
    JobSummary,
    MachineSummary,
    SweepProgress,
    job_summaries,
    machine_summaries,
    sweep_progress,
)

# A recommendation reads every sample; the live pages read a few rows.
RESULTS_SECONDS = 15
LIVE_SECONDS = 2

WHICH_DATABASE = 'echo "$FARM_DATABASE_URL"'


@dataclass(frozen=True)
class Problem:
    """Why there is nothing to show, and the command that changes it."""

    title: str
    explanation: str
    command: str


def database_url() -> str:
    """Return FARM_DATABASE_URL, or the SQLite file in the farm's home."""
    return os.environ.get("FARM_DATABASE_URL") or f"sqlite:///{home() / 'farm.db'}"


@st.cache_resource(show_spinner=False)
def engine(url: str) -> Engine:
    """Return the database's engine, opened once per URL."""
    return open_database(url)


def problem(url: str) -> Problem | None:
    """Say what stands between the dashboard and the database's tables; None when all is well."""
    missing = _missing_file(url)
    if missing is not None:
        return Problem(
            "No database yet",
            f"There is no file {missing}. The first command of the farm makes it, or "
            "FARM_DATABASE_URL names another database.",
            "farm db upgrade",
        )
    try:
        found, wanted = current(engine(url)), head()
    except SpecfarmError as error:
        return Problem("The database can't be opened", str(error), WHICH_DATABASE)
    if found == wanted:
        return None
    if found is None:
        return Problem(
            "The database has no tables yet", "This command makes them.", "farm db upgrade"
        )
    return Problem(
        "The database belongs to another version of the farm",
        f"It is at migration {found} and this farm needs {wanted}. Upgrade the database, or "
        "install the newer specfarm if one has already upgraded it.",
        "farm db upgrade",
    )


@st.cache_data(ttl=RESULTS_SECONDS, show_spinner="Reading the results")
def findings(url: str) -> Findings:
    """Return the advice for every setup with finished jobs, and the what-ifs."""
    with reading(engine(url)) as session:
        return judge(session)


@st.cache_data(ttl=LIVE_SECONDS, show_spinner=False)
def sweeps(url: str) -> list[SweepProgress]:
    """Return the sweeps with their progress, newest first."""
    with reading(engine(url)) as session:
        return sweep_progress(session)


@st.cache_data(ttl=LIVE_SECONDS, show_spinner=False)
def jobs(url: str, sweep_id: int | None) -> list[JobSummary]:
    """Return the jobs of one sweep or of all, in order of id."""
    with reading(engine(url)) as session:
        return job_summaries(session, sweep_id)


@st.cache_data(ttl=LIVE_SECONDS, show_spinner=False)
def machines(url: str) -> list[MachineSummary]:
    """Return the registered machines by name."""
    with reading(engine(url)) as session:
        return machine_summaries(session)


def _missing_file(url: str) -> Path | None:
    """Return the SQLite file that is not there: connecting would make an empty one."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        return None
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        return None
    path = Path(parsed.database)
    return None if path.exists() else path
