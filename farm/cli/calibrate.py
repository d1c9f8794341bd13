"""`farm calibrate`: model pairs whose acceptance is known beforehand. None is a language model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from farm.domain.decoding import AcceptRule
from farm.gguf.calibration import QUANTISATIONS, SHAPES, law_of, make_pair, pair_bytes
from farm.gguf.header import read_header
from farm.paths import cache

NOTICE = "Calibration pairs are not language models: their output is a known table, not text."

app = typer.Typer(
    name="calibrate",
    no_args_is_help=True,
    add_completion=False,
    help=f"Make and inspect calibration pairs, whose acceptance is known exactly. {NOTICE}",
)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def make(
    shape: Annotated[str, typer.Option(help="One of `farm calibrate shapes`.")] = "demo",
    quantisation: Annotated[str, typer.Option(help=f"{', '.join(QUANTISATIONS)}.")] = "f16",
    seed: Annotated[int, typer.Option(help="Which law of that shape.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to; the farm's cache by default.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Write it even if memory is too small.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write a calibration pair (not a language model) and print the two paths."""
    folder = out or cache() / "calibration"
    errors = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task("writing", total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        target, draft = make_pair(shape, quantisation, folder, seed, progress=show, force=force)
    if as_json:
        paths = {"target": str(target), "draft": str(draft), "is_language_model": False}
        print(json.dumps(paths, indent=2))
        return
    print(f"target: {target}\ndraft:  {draft}")
    errors.print(NOTICE)


@app.command()
def shapes(as_json: JsonFlag = False) -> None:
    """List the shapes with their size in each quantisation. None is a language model."""
    sizes = {
        name: {kind: pair_bytes(shape, kind) for kind in QUANTISATIONS}
        for name, shape in SHAPES.items()
    }
    if as_json:
        rows = [
            {
                "shape": name,
                "about": SHAPES[name].about,
                "bytes": {
                    kind: {"target": target, "draft": draft}
                    for kind, (target, draft) in sizes[name].items()
                },
            }
            for name in SHAPES
        ]
        print(json.dumps(rows, indent=2))
        return
    table = Table("shape", *(f"{kind} GB" for kind in QUANTISATIONS), caption=NOTICE)
    table.columns[0].no_wrap = True
    for name, by_kind in sizes.items():
        cells = [f"{_gb(target)} + {_gb(draft)}" for target, draft in by_kind.values()]
        table.add_row(name, *cells)
    console = Console()
    console.print(table)
    for name, shape in SHAPES.items():
        console.print(f"{name}: {shape.about}", highlight=False)


@app.command()
def expect(
    file: Annotated[Path, typer.Argument(help="Either file of a calibration pair.")],
    k: Annotated[list[int] | None, typer.Option("--k", help="K; may be repeated.")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    accept: Annotated[
        AcceptRule, typer.Option(help="Rule above temperature 0.")
    ] = AcceptRule.EXACT,
    as_json: JsonFlag = False,
) -> None:
    """Print the acceptance a long run must show in each category, computed from the law."""
    law = law_of(read_header(file))
    widths = k or [4, 8, 16]
    expected = {
        category: [
            law.expected_acceptance(category, n_max, temperature, accept) for n_max in widths
        ]
        for category in law.categories
    }
    if as_json:
        rows = [
            {
                "category": category,
                "k": value.n_max,
                "temperature": temperature,
                "accept": accept.value,
                "acceptance_rate": value.rate,
                "tokens_per_round": value.tokens_per_round,
                "accepted_at": list(value.accepted_at),
            }
            for category, values in expected.items()
            for value in values
        ]
        print(json.dumps(rows, indent=2))
        return
    heads = (f"K={n_max}" for n_max in widths)
    table = Table("category", *heads, caption=f"acceptance (tokens per round). {NOTICE}")
    for category, values in expected.items():
        table.add_row(category, *(f"{v.rate:.3f} ({v.tokens_per_round:.2f})" for v in values))
    Console().print(table)


def _gb(count: int) -> str:
    return f"{count / 1e9:.0f}" if count >= 10e9 else f"{count / 1e9:.1g}"
