"""Page 1: for each machine, pair and kind of content, the best K or none, and how sure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
import streamlit as st

from dashboard import data, tables
from dashboard.charts import acceptance_chart, speedup_chart
from dashboard.notices import say_empty, usable_database
from farm.report.axes import shared_axes
from farm.report.grouping import Subject, by_subject
from farm.report.markdown import escape
from farm.report.provenance import system_text
from farm.report.serving import servings
from farm.report.tables import ALL_USERS_HEADER, reason_text
from farm.report.what_if import WHAT_IF_HEADING, WHAT_IF_NOTE
from farm.report.wording import (
    HOW_TO_READ,
    NOT_MEASURED,
    advice_sentence,
    calibration_sentence,
    has_k,
    measured_with,
    pair_label,
    plain,
    temperature_label,
)
from farm.services.recommend import Recommendation, WhatIfCurve

CHARTS_PER_ROW = 4

FILTERS: dict[str, tuple[str, Callable[[Recommendation], str]]] = {
    "machine": ("Machine", lambda item: plain(item.setup.machine)),
    "pair": ("Pair", lambda item: pair_label(item.setup)),
    "temperature": ("Temperature", lambda item: temperature_label(item.setup.temperature)),
    "category": ("Content", lambda item: item.setup.category),
}

COLUMN_CONFIG = {
    "Content": st.column_config.TextColumn(width=135),
    "Verdict": st.column_config.TextColumn(width=170),
    "Configuration": st.column_config.TextColumn(width=170),
    "Best K": st.column_config.NumberColumn(
        width=70,
        help="The K with the highest speedup; where the verdict is off, what came closest.",
    ),
    "Speedup": st.column_config.NumberColumn(
        format="%.2fx", width=85, help="Speculative over baseline decode speed, same prompts."
    ),
    "95 % interval": st.column_config.TextColumn(width=110, alignment="right"),
    "Acceptance": st.column_config.NumberColumn(
        format="%.1f %%", width=95, help="Accepted drafted tokens of all drafted."
    ),
    "Tokens/round": st.column_config.NumberColumn(
        format="%.2f", width=105, help="The target's own token included."
    ),
    "Baseline tok/s": st.column_config.NumberColumn(
        format="%.1f", width=110, help="Decode speed without speculation."
    ),
    "Speculative tok/s": st.column_config.NumberColumn(
        format="%.1f", width=130, help="Decode speed with speculation."
    ),
    ALL_USERS_HEADER[0]: st.column_config.NumberColumn(
        format="%.1f", help="Tokens per second of the whole server, prompts included."
    ),
    ALL_USERS_HEADER[1]: st.column_config.NumberColumn(
        format="%.1f", help="The same with speculation."
    ),
    "Parity": st.column_config.TextColumn(
        width=155, help="Outputs equal to the baseline's, of all compared at temperature 0."
    ),
    "Prompts": st.column_config.NumberColumn(width=75),
}


def page() -> None:
    """Show the filters, the headline table and the chosen setup's K curves."""
    st.header("Recommendations")
    url = usable_database()
    found = data.findings(url)
    everything, apart = found.recommendations, found.what_ifs
    if not everything and not apart:
        say_empty(
            "Nothing measured yet",
            "The database is ready and no job has finished. Submit a sweep; results appear here "
            "as its jobs finish.",
            "farm submit sweep.yaml",
        )
        return
    if everything:
        _measured(everything)
    if apart:
        _what_ifs(apart)


def _measured(everything: Sequence[Recommendation]) -> None:
    chosen = _filtered(everything)
    if not chosen:
        st.info("No result fits these filters. Remove one to see more.")
        return
    note = calibration_sentence(chosen)
    if note:
        st.warning(note)
    subjects = by_subject(chosen)
    for subject in subjects:
        _advice(subject)
    with st.expander("How to read this"):
        st.markdown("\n".join(f"- {escape(line)}" for line in HOW_TO_READ))
    _curves(_chosen_subject(subjects))


def _what_ifs(curves: Sequence[WhatIfCurve]) -> None:
    st.markdown(f"#### {WHAT_IF_HEADING}")
    st.caption(WHAT_IF_NOTE)
    _show_table(tables.what_ifs(curves))


def _filtered(everything: Sequence[Recommendation]) -> list[Recommendation]:
    """Show the filters and return what passes them; an empty filter lets everything pass."""
    kept = list(everything)
    for column, (key, (label, value_of)) in zip(st.columns(4), FILTERS.items(), strict=True):
        options = list(dict.fromkeys(map(value_of, everything)))
        with column:
            picked = st.multiselect(label, options, key=key, placeholder="All", bind="query-params")
        if picked:
            kept = [item for item in kept if value_of(item) in picked]
    return kept


def _advice(subject: Subject) -> None:
    st.markdown(f"##### {escape(subject.label)}")
    st.text(advice_sentence(subject.recommendations))
    _show_table(tables.headline(subject.recommendations))


def _chosen_subject(subjects: Sequence[Subject]) -> Subject:
    """Ask whose curves to show where there is a choice."""
    st.markdown("#### K curves")
    if len(subjects) == 1:
        return subjects[0]
    labels = {subject.label: subject for subject in subjects}
    label = st.selectbox("Setup", list(labels), key="setup", bind="query-params")
    return labels.get(label, subjects[0])


def _curves(subject: Subject) -> None:
    members = subject.recommendations
    setup = subject.setup
    if has_k(setup):
        _charts(members)
    else:
        st.caption("Its servers have a K of their own, so there is no curve over it.")
    blocks = servings(members)
    if blocks:
        st.markdown("#### Commands to paste")
    for block in blocks:
        use = "speculation on" if block.speculates else "speculation off"
        st.text(f"For {', '.join(block.categories)} ({use}):")
        for note in block.notes:
            st.caption(note)
        if block.command is not None:
            st.code(block.command, language="sh", wrap_lines=True)
    with st.expander("Numbers behind the curves"):
        st.caption(
            f"{plain(setup.hardware)} · {setup.engine}, {plain(setup.build)} · "
            f"{measured_with(setup)} · "
            f"{system_text(setup.conditions)}"
        )
        _show_table(tables.curves(members))
        for item in members:
            st.text(f"{item.setup.category}: {reason_text(item)}")


def _charts(members: Sequence[Recommendation]) -> None:
    st.caption(
        "Each dot is the speedup at one K and its bar the 95 % interval; the large dot is the "
        "best K. A bar wholly above the dashed line (the baseline's own speed) is a proven gain."
    )
    axes = shared_axes([point for item in members for point in item.curve])
    for start in range(0, len(members), CHARTS_PER_ROW):
        columns = st.columns(CHARTS_PER_ROW, gap="medium")
        for column, item in zip(columns, members[start : start + CHARTS_PER_ROW], strict=False):
            with column:
                st.altair_chart(speedup_chart(item, axes), width="stretch")
                st.altair_chart(acceptance_chart(item, axes), width="stretch")


def _show_table(frame: pd.DataFrame) -> None:
    config = {name: COLUMN_CONFIG[name] for name in frame.columns if name in COLUMN_CONFIG}
    st.dataframe(
        frame, hide_index=True, column_config=config, placeholder=NOT_MEASURED, height="content"
    )
