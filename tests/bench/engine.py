"""The engine's speed against its neighbours, and what the farm adds: `make bench-engine`.

One calibration pair, one build and one number of threads; arms in turns, in mirrored order;
medians and ratios by pairs. How busy other programs were is read before each comparison, and the
worst is said: on a busy machine a verdict means nothing. Each comparison says in its module what
it compares.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from farm.builds import tools
from tests.bench import (
    farm_overhead,
    llama_bench,
    llama_server,
    memory,
    speculative_simple,
    vocabulary,
)
from tests.bench.rig import Rig, demo_pair
from tests.bench.timing import Figure
from worker.probe.cpu import decoding_threads
from worker.probe.load import busy_share_of_others

LOAD_WINDOW_S = 1.0

COMPARISONS: dict[str, Callable[[Rig], list[Figure]]] = {
    "llama-bench": llama_bench.measure,
    "speculative-simple": speculative_simple.measure,
    "llama-server": llama_server.measure,
    "farm-overhead": farm_overhead.measure,
    "vocabulary": vocabulary.measure,
    "memory": memory.measure,
}


def main() -> None:
    """Measure what is asked for; print one table. Exit status 1 where a bar is missed."""
    options = _options()
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder:
        threads = options.threads or decoding_threads()
        rig = Rig(threads, options.quick, tools.ensure(console), Path(folder), demo_pair())
        figures, busy = [], []
        for name in options.only or COMPARISONS:
            busy.append(busy_share_of_others(LOAD_WINDOW_S) or 0.0)
            with console.status(f"{name}, {threads} threads"):
                figures += COMPARISONS[name](rig)
    title = f"{rig.tools.name}, {threads} threads; others kept {max(busy):.0%} of the cores busy"
    Console(width=None if sys.stdout.isatty() else 160).print(_table(figures, title))
    if options.json:
        rows = [asdict(figure) | {"is_met": figure.is_met} for figure in figures]
        result = {"build": rig.tools.name, "threads": threads, "quick": rig.is_quick}
        result |= {"busy_share_of_others": max(busy)}
        options.json.write_text(json.dumps(result | {"figures": rows}, indent=2) + "\n")
    sys.exit(any(figure.is_met is False for figure in figures))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-engine", description=main.__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, a 10 s job")
    parser.add_argument("--only", action="append", choices=COMPARISONS, help="may be repeated")
    parser.add_argument("--threads", type=int, help="default: one per core that decodes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser.parse_args()


def _table(figures: list[Figure], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in ("figure", "", "bar", "", "detail"):
        table.add_column(heading)
    for figure in figures:
        verdict = {True: "met", False: "MISSED", None: ""}[figure.is_met]
        value = f"{figure.value:.3f} {figure.unit}"
        table.add_row(figure.name, value, figure.bar, verdict, figure.detail)
    return table


if __name__ == "__main__":
    main()
