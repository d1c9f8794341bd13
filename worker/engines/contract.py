"""What every engine offers the worker: load a pair once, run jobs on it, end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from farm.domain.job import Arm, JobSpec
from farm.domain.measurement import Sample


@dataclass(frozen=True)
class PreparedPrompt:
    """A prompt as the engine gets it: the text may carry a calibration pair's start state.

    depth_text: what fills `settings.depth_tokens` of the context before it. Those tokens count as
    the prompt's: `Sample.prompt_tokens` has them.
    """

    digest: str
    text: str
    depth_text: str = ""


@dataclass(frozen=True)
class BuildInfo:
    """The llama.cpp that decoded, as it described itself.

    commit: llama.cpp's, None where the build does not tell. libraries: versions of what decodes
    beside it.
    """

    digest: str
    name: str
    system_info: str
    commit: str | None = None
    libraries: dict[str, str] = field(default_factory=dict)


class Engine(Protocol):
    """A loaded pair of one build. Raises farm.errors.BenchmarkError with the error's kind.

    It serves every job with the `pair_key` it was loaded for. What a job asks for beyond that
    (another K, kind or temperature), the engine sees to when it runs it.
    """

    build: BuildInfo
    # What kept the models from the rest of the machine; see `worker.isolation.held`.
    isolation: str

    def run(
        self, spec: JobSpec, prompts: list[PreparedPrompt], deadline: float
    ) -> Iterator[Sample | None]:
        """Yield samples as they come, and None at least every second while none does, so that
        the caller can look at its lease. deadline: time.monotonic at which to give up."""

    def parameters(self, spec: JobSpec) -> dict[Arm, dict[str, Any]]:
        """Return what a job's two arms decode with, as JSON values; a command line as "command".

        Everything that decides a result, defaults included, and nothing of one run alone: words
        such as TARGET and PORT stand for paths, ports, keys and seeds. The baseline's are the same
        whatever the speculation.
        """

    def log_tail(self) -> str:
        """Return the end of the engine's log."""

    def end(self) -> None:
        """Free everything; harmless when called twice."""


class EngineFactory(Protocol):
    """An entry of the registry in `worker.engines.registry`.

    needs_files: whether it loads the pair from files on this machine. Where not, a job's models are
    in servers that run already, and `load` gets paths that lead nowhere.
    """

    name: str
    needs_files: bool

    def builds(self) -> tuple[str, ...]:
        """Return the builds this machine offers, as "<distribution>==<version>"."""

    def load(
        self, spec: JobSpec, target: Path, draft: Path | None, log: Path, deadline: float
    ) -> Engine:
        """Load a pair. Raises BenchmarkError."""
