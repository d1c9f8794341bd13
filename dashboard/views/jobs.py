"""Page 2: how far the sweeps are, and what went wrong. Refreshes by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pandas as pd
import streamlit as st

from dashboard import data
from dashboard.notices import say_empty, usable_database
from farm.domain.job import JobState
from farm.report.wording import model_label, plain, temperature_label
from farm.store.queries import JobSummary, SweepProgress

REFRESH_SECONDS = 5
MAX_ROWS = 2000
STATE_WORDS = {
    JobState.QUEUED: "queued",
    JobState.LEASED: "running",
    JobState.DONE: "done",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
}
EVERY_SWEEP = "All sweeps"


def page() -> None:
    """Show the sweeps, the job counts, the errors and the jobs."""
    st.header("Jobs")
    url = usable_database()
    sweeps = data.sweeps(url)
    if not sweeps and not data.jobs(url, None):
        say_empty(
            "No jobs yet",
            "The database is ready and nothing was submitted.",
            "farm submit sweep.yaml",
        )
        return
    left, right = st.columns([1, 2])
    names = {f"{plain(sweep.name)} (#{sweep.id})": sweep.id for sweep in sweeps}
    with left:
        sweep = st.selectbox("Sweep", [EVERY_SWEEP, *names], key="sweep", bind="query-params")
    with right:
        states = st.pills(
            "State",
            list(STATE_WORDS.values()),
            selection_mode="multi",
            key="state",
            bind="query-params",
        )
    _live(url, names.get(sweep or ""), list(states or []))


@st.fragment(run_every=REFRESH_SECONDS)
def _live(url: str, sweep_id: int | None, words: list[str]) -> None:
    url = usable_database()
    sweeps = [item for item in data.sweeps(url) if sweep_id in (None, item.id)]
    jobs = data.jobs(url, sweep_id)
    counts = Counter(STATE_WORDS[JobState(job.state)] for job in jobs)
    for column, word in zip(st.columns(len(STATE_WORDS)), STATE_WORDS.values(), strict=True):
        column.metric(word.capitalize(), counts[word], border=True)
    if sweeps:
        st.markdown("#### Sweeps")
        st.dataframe(
            sweep_frame(sweeps),
            hide_index=True,
            column_config={
                "Progress": st.column_config.ProgressColumn(
                    format="%.0f %%", min_value=0, max_value=100, width="medium"
                ),
                "Submitted (UTC)": st.column_config.DatetimeColumn(format="YYYY-MM-DD HH:mm"),
            },
        )
    errors = error_frame(jobs)
    if not errors.empty:
        st.markdown("#### What went wrong")
        st.dataframe(
            errors,
            hide_index=True,
            column_config={
                "Job": st.column_config.NumberColumn(width=60),
                "Message": st.column_config.TextColumn(width=760),
            },
        )
    st.markdown("#### Jobs")
    shown = [job for job in jobs if not words or STATE_WORDS[JobState(job.state)] in words]
    if not shown:
        st.info("No job is in this state.")
        return
    if len(shown) > MAX_ROWS:
        st.caption(f"The newest {MAX_ROWS} of {len(shown)} jobs.")
    st.dataframe(
        job_frame(shown[::-1][:MAX_ROWS]),
        hide_index=True,
        placeholder="–",
        column_config={
            "Job": st.column_config.NumberColumn(width=60),
            "State": st.column_config.TextColumn(width=80),
            "Machine": st.column_config.TextColumn(width=130),
            "Models": st.column_config.TextColumn(width=480),
            "Content": st.column_config.TextColumn(width=135),
            "Temp.": st.column_config.TextColumn(width=60, alignment="right"),
            "K": st.column_config.NumberColumn(width=50),
            "Attempts": st.column_config.NumberColumn(width=80),
            "Samples": st.column_config.NumberColumn(width=80),
        },
    )


def sweep_frame(sweeps: Sequence[SweepProgress]) -> pd.DataFrame:
    """Return one row per sweep: finished share and the jobs by state."""
    rows = [
        {
            "Sweep": f"{plain(sweep.name)} (#{sweep.id})",
            "Submitted (UTC)": pd.to_datetime(sweep.submitted_at, unit="s", utc=True),
            "Progress": 100 * sweep.finished / sweep.total if sweep.total else 0.0,
            "Jobs": sweep.total,
        }
        | {word.capitalize(): sweep.states.get(state, 0) for state, word in STATE_WORDS.items()}
        for sweep in sweeps
    ]
    return pd.DataFrame(rows)


def error_frame(jobs: Sequence[JobSummary]) -> pd.DataFrame:
    """Return the newest jobs whose last attempt failed; a queued one is to be tried again."""
    rows = [
        {
            "Job": job.id,
            "State": STATE_WORDS[JobState(job.state)],
            "Error": job.error_kind,
            "Message": job.error_message,
        }
        for job in jobs[::-1]
        if job.error_kind
    ]
    return pd.DataFrame(rows[:MAX_ROWS])


def job_frame(jobs: Sequence[JobSummary]) -> pd.DataFrame:
    """Return one row per job. Machine is the one that ran it last, else what the job asks for."""
    rows = [
        {
            "Job": job.id,
            "State": STATE_WORDS[JobState(job.state)],
            "Machine": plain(job.machine or job.selector),
            "Models": model_label(job.target_name)
            + (f" + {model_label(job.draft_name)}" if job.draft_name else f", {job.kind}"),
            "Content": job.category,
            "Temp.": temperature_label(job.temperature),
            "K": job.n_max or None,
            "Attempts": job.attempts,
            "Samples": job.samples,
        }
        for job in jobs
    ]
    return pd.DataFrame(rows)
