"""A tiny calibration pair, and settings under which many tests can share two cores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from endpoint_servers import DRAFTS, Endpoints, llama_server
from rich.console import Console
from small_farm import SmallFarm

from farm.builds import tools
from farm.builds.tools import ToolBuild
from farm.domain.decoding import Settings
from farm.gguf.calibration import Law, law_of, make_pair
from farm.gguf.header import read_header
from worker import execute, process, spool
from worker.probe.environment import read_environment


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
    return asdict(one_thread.spelled_out())


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep remembered digests out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FARM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def small_farm(tmp_path: Path, tiny_pair: tuple[Path, Path]) -> Iterator[SmallFarm]:
    """Return a farm of one machine on SQLite, with copies of the tiny pair of its own."""
    farm = SmallFarm.create(tmp_path, tiny_pair)
    yield farm
    farm.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lose no time: short readings of the environment, short waits between tries."""
    monkeypatch.setattr(execute, "read_environment", partial(read_environment, 0.01))
    monkeypatch.setattr(spool, "RETRY_PAUSE_S", 0.01)
    monkeypatch.setattr(process, "END_GRACE_S", 0.5)


@pytest.fixture
def farm(small_farm: SmallFarm) -> SmallFarm:
    """Return a farm with one job of three prompts."""
    small_farm.submit(k=[2], categories=["chat"])
    return small_farm


@pytest.fixture(scope="session")
def llama_tools() -> ToolBuild:
    """Return real binaries: of FARM_LLAMA_TOOLS, of `farm builds list`, or compiled now (minutes).

    Without them nothing is known about the engine, so no test is left out.
    """
    return tools.ensure(Console(stderr=True))


@pytest.fixture(scope="module")
def running_servers(
    llama_tools: ToolBuild, tiny_pair: tuple[Path, Path]
) -> Iterator[tuple[str, str]]:
    """Return the addresses of two llama-servers: a plain one, and one that drafts."""
    target, draft = tiny_pair
    with (
        llama_server(llama_tools, target) as plain,
        llama_server(llama_tools, target, "-md", draft, "-ngld", "0", *DRAFTS) as fast,
    ):
        yield plain, fast


@pytest.fixture
def register_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a farm home whose register of endpoints is empty."""
    home = tmp_path / "home"
    monkeypatch.setenv("FARM_HOME", str(home))
    return home


@pytest.fixture
def endpoints(running_servers: tuple[str, str], register_home: Path) -> Endpoints:
    """Return two servers that run already, and nothing registered yet."""
    return Endpoints(*running_servers)
