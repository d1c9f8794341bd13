"""A tiny calibration pair, and settings under which many tests can share two cores."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from farm.builds import tools
from farm.builds.tools import ToolBuild
from farm.domain.decoding import Settings
from farm.gguf.calibration import Law, law_of, make_pair
from farm.gguf.header import read_header


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return target and draft of a calibration pair of a few MB."""
    return make_pair("tiny", "f16", tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="session")
def law(tiny_pair: tuple[Path, Path]) -> Law:
    """Return the law that the tiny pair follows."""
    return law_of(read_header(tiny_pair[0]))


@pytest.fixture(scope="session")
def one_thread() -> Settings:
    """Return settings with one thread: llama.cpp's threads spin while they wait."""
    return Settings(context_tokens=2048, threads=1, gpu_layers=0, draft_gpu_layers=0)


@pytest.fixture(scope="session")
def one_thread_payload(one_thread: Settings) -> dict[str, Any]:
    """Return `one_thread` as the child gets it."""
    return asdict(one_thread)


@pytest.fixture(scope="session")
def llama_tools() -> ToolBuild:
    """Return real binaries: of FARM_LLAMA_TOOLS, of `farm builds list`, or compiled now (minutes).

    Without them nothing is known about the engine, so no test is left out.
    """
    return tools.ensure(Console(stderr=True))
