"""A job for llama-server on the tiny pair, and a loader that leaves nothing running."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_contract import CATEGORY, TEXTS, Load, servers, soon

from farm.builds.tools import ToolBuild
from farm.domain.decoding import Sampling, Settings, Speculation, SpeculationKind
from farm.domain.job import JobSpec, ModelRef
from farm.gguf.calibration import Law, calibration_prompt
from worker.engines.contract import PreparedPrompt
from worker.engines.llama_server import LlamaServerEngine, LlamaServerFactory


@pytest.fixture
def prompts(law: Law) -> list[PreparedPrompt]:
    return [
        PreparedPrompt(text, calibration_prompt(law, CATEGORY, text, index))
        for index, text in enumerate(TEXTS)
    ]


@pytest.fixture
def spec(tiny_pair: tuple[Path, Path], one_thread: Settings, llama_tools: ToolBuild) -> JobSpec:
    target, draft = (ModelRef(str(path), path.name, path.stem) for path in tiny_pair)
    return JobSpec(
        machine="any",
        engine="llama-server",
        build=llama_tools.name,
        target=target,
        draft=draft,
        speculation=Speculation(SpeculationKind.DRAFT_SIMPLE, 4),
        sampling=Sampling(0.0, 0),
        settings=one_thread,
        category=CATEGORY,
        prompts=TEXTS,
        generate_tokens=24,
        repeats=1,
    )


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    """Return a loader; what it loaded is ended, and nothing may be left running."""
    engines: list[LlamaServerEngine] = []

    def load(spec: JobSpec) -> LlamaServerEngine:
        draft = Path(spec.draft.path) if spec.draft else None
        log = tmp_path / "job-1-1.log"
        engine = LlamaServerFactory().load(spec, Path(spec.target.path), draft, log, soon())
        engines.append(engine)
        return engine

    yield load
    for engine in engines:
        engine.end()
    assert servers() == []
