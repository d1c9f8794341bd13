"""`farm builds`: the llama.cpp binaries that the engine llama-server measures with."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from farm.builds import tools
from farm.builds.compile import CompileError, exit_on_sigterm
from farm.builds.tools import ToolBuild
from farm.cli.session import JsonOption, err, out, print_json

app = typer.Typer(
    name="builds",
    no_args_is_help=True,
    add_completion=False,
    help="Compile, register and list builds of llama-server for the engine of that name.",
)


@app.command("compile")
def compile_(as_json: JsonOption = False) -> None:
    """Compile llama-server, llama-bench and llama-speculative-simple once, and keep them.

    The source is that of the pinned llama-cpp-python. CMAKE_ARGS chooses the backend, as in
    CMAKE_ARGS=-DGGML_CUDA=on.
    """
    exit_on_sigterm()
    try:
        build = tools.compile_tools(err)
    except CompileError as error:
        sys.stderr.write(error.tail)
        raise
    _show([build], as_json)


@app.command()
def add(
    folder: Annotated[Path, typer.Argument(help="A folder with llama-server in it.")],
    as_json: JsonOption = False,
) -> None:
    """Register binaries that are here already, such as an unpacked release; they stay there."""
    _show([tools.add(folder)], as_json)


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """List the builds that are here, the newest first. 'build: installed' means the first."""
    _show(tools.installed(), as_json)


def _show(builds: list[ToolBuild], as_json: bool) -> None:
    if as_json:
        print_json([{"name": build.name} | asdict(build) for build in builds])
        return
    if not builds:
        out.print("No build is here; 'farm builds compile' makes one.")
        return
    table = Table("build", "number", "compiler", "origin", "made", "folder")
    table.columns[0].no_wrap = True
    for build in builds:
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(build.made_at))
        row = (build.name, str(build.number), build.compiler, build.origin, made, str(build.folder))
        table.add_row(*row)
    out.print(table)
