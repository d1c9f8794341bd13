"""Page 3: the registered machines and what each can run."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from dashboard import data
from dashboard.notices import say_empty, usable_database
from farm.report.facts import machine_facts
from farm.report.markdown import escape
from farm.report.wording import plain

REFRESH_SECONDS = 30


def page() -> None:
    """Show every machine's facts, engines and builds."""
    st.header("Machines")
    url = usable_database()
    if not data.machines(url):
        say_empty(
            "No machine yet",
            "A machine registers itself when its worker starts for the first time.",
            "farm worker",
        )
        return
    _live(url)


@st.fragment(run_every=REFRESH_SECONDS)
def _live(url: str) -> None:
    machines = data.machines(usable_database())
    st.dataframe(
        pd.DataFrame(
            [
                {
                    "Machine": plain(machine.name),
                    "Decodes on": machine.kind,
                    "Hardware": plain(machine.hardware),
                    "Engines": ", ".join(machine.engines),
                    "Builds": len(machine.builds),
                    "Last seen": pd.to_datetime(machine.last_seen_at, unit="s", utc=True),
                }
                for machine in machines
            ]
        ),
        hide_index=True,
        column_config={
            "Last seen": st.column_config.DatetimeColumn(format="distance"),
            "Builds": st.column_config.NumberColumn(width="small"),
        },
    )
    for start in range(0, len(machines), 2):
        for column, machine in zip(st.columns(2), machines[start : start + 2], strict=False):
            with column.container(border=True):
                st.markdown(f"#### {escape(machine.name)}")
                st.table(
                    pd.DataFrame(machine_facts(machine), columns=["Fact", "Value"]),
                    hide_index=True,
                    hide_header=True,
                    border="horizontal",
                )
