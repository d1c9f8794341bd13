"""What a page shows where it has no data to show."""

from __future__ import annotations

import streamlit as st

from dashboard.data import Problem, database_url, problem


def usable_database() -> str:
    """Return the database's URL; where it can't be used, explain why and end the page."""
    url = database_url()
    found = problem(url)
    if found is not None:
        explain(found)
        st.stop()
    return url


def explain(found: Problem) -> None:
    """Show a problem and the command that solves it."""
    with st.container(border=True):
        st.subheader(found.title)
        st.text(found.explanation)
        st.code(found.command, language="sh")


def say_empty(title: str, explanation: str, command: str) -> None:
    """Say that the database is in order and still has nothing for this page."""
    explain(Problem(title, explanation, command))
