"""`farm compat`: would llama.cpp let this draft propose tokens for this target?"""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from farm.errors import UserError
from farm.gguf.compat import Compatibility, check_pair
from farm.gguf.header import Header, read_header

INCOMPATIBLE_EXIT = 2


def compat(
    target: Annotated[Path, typer.Argument(help="Target .gguf, or a folder of .gguf files.")],
    draft: Annotated[Path | None, typer.Argument(help="Draft .gguf.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check a pair from its headers alone, by llama.cpp's own rules for the kind it is made for.

    With a folder, every pair in it whose draft has fewer parameters. Exit code 0 when the pair (or
    any pair of the folder) is compatible, 2 when not.
    """
    if draft is not None:
        pairs = [(read_header(target), read_header(draft))]
        skipped: list[str] = []
    else:
        pairs, skipped = _pairs_in(target)
    verdicts = [(ours, theirs, check_pair(ours, theirs)) for ours, theirs in pairs]
    if as_json:
        print(json.dumps([_row(*verdict) for verdict in verdicts], indent=2))
    else:
        _show(verdicts, skipped)
    if not any(verdict.compatible for _, _, verdict in verdicts):
        raise typer.Exit(INCOMPATIBLE_EXIT)


def _pairs_in(folder: Path) -> tuple[list[tuple[Header, Header]], list[str]]:
    if not folder.is_dir():
        raise UserError(f"Give a target and a draft, or a folder: {folder} is no folder.")
    headers, skipped = [], []
    for path in sorted(folder.glob("*.gguf")):
        try:
            headers.append(read_header(path))
        except UserError as error:
            skipped.append(str(error))
    pairs = [
        (target, draft)
        for target, draft in permutations(headers, 2)
        if draft.parameter_count < target.parameter_count
    ]
    if not pairs:
        reason = f" ({skipped[0]})" if skipped else ""
        raise UserError(
            f"{folder} holds no two .gguf models of different parameter counts to pair{reason}."
        )
    return pairs, skipped


def _row(target: Header, draft: Header, verdict: Compatibility) -> dict[str, Any]:
    return {
        "target": str(target.path),
        "draft": str(draft.path),
        "kind": verdict.kind,
        "compatible": verdict.compatible,
        "reasons": list(verdict.reasons),
        "notes": list(verdict.notes),
    }


def _show(verdicts: list[tuple[Header, Header, Compatibility]], skipped: list[str]) -> None:
    console = Console()
    if len(verdicts) == 1:
        target, draft, verdict = verdicts[0]
        said = "fits" if verdict.compatible else "does not fit"
        console.print(f"{_escaped(draft.path.name)} {said} {_escaped(target.path.name)}")
        console.print(f"  - kind: {verdict.kind}")
        for line in _why(verdict):
            console.print(f"  - {line}")
    else:
        table = Table("target", "draft", "kind", "fits", "why")
        for column in table.columns[:2]:
            column.overflow = "fold"
        for target, draft, verdict in verdicts:
            fits = "[green]yes[/]" if verdict.compatible else "[red]no[/]"
            names = _escaped(target.path.name), _escaped(draft.path.name)
            table.add_row(*names, verdict.kind, fits, "\n".join(_why(verdict)))
        console.print(table)
    for reason in skipped:
        console.print(f"left out: {_escaped(reason)}")


def _why(verdict: Compatibility) -> list[str]:
    rules = [] if verdict.reasons else ["all of llama.cpp's rules hold"]
    notes = [f"note: {note}" for note in verdict.notes]
    return [_escaped(line) for line in (*verdict.reasons, *rules, *notes)]


def _escaped(text: str) -> str:
    # Token texts hold square brackets, which rich would read as styles.
    return text.replace("[", r"\[")
