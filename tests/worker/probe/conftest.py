"""Recorded tool outputs and stand-in tools."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

RECORDED = Path(__file__).parent / "recorded"


@pytest.fixture(scope="session")
def recorded() -> Callable[[str], str]:
    """Return a reader of recorded outputs by file name."""
    return lambda name: (RECORDED / name).read_text()


@pytest.fixture
def fake_tool(tmp_path: Path) -> Callable[[str, str], str]:
    """Return a maker of shell scripts that stand in for tools; it gives the script's path."""

    def make(name: str, script: str) -> str:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    return make
