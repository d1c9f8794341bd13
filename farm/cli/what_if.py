"""The what-ifs that `farm recommend` and `farm results` print below what was measured."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from farm.cli.session import out
from farm.report.what_if import WHAT_IF_HEADING, WHAT_IF_NOTE, what_if_rows
from farm.services.recommend import WhatIfCurve

LEFT = ("content", "configuration")
RIGHT = ("speedup", "95 % interval", "accepted", "tok/round", "plain", "tok/s")


def print_what_ifs(curves: Sequence[WhatIfCurve]) -> None:
    """Print what-ifs under a heading of their own; nothing where none is."""
    rows = what_if_rows(curves)
    if not rows:
        return
    out.print(f"[bold]{WHAT_IF_HEADING}[/bold]")
    for setup, members in itertools.groupby(rows, key=lambda row: row[0]):
        table = Table(title=escape(setup), title_justify="left", box=box.SIMPLE_HEAD)
        for column in LEFT:
            table.add_column(column)
        for column in RIGHT:
            table.add_column(column, justify="right")
        for row in members:
            table.add_row(*map(escape, row[1:-1]))
        out.print(table)
    out.print(WHAT_IF_NOTE)
