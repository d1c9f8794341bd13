"""The in-process engine: llama-cpp-python in a child of this interpreter."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from farm.domain.engines import IN_PROCESS
from farm.domain.job import Arm, JobSpec
from farm.domain.measurement import Parity, Sample
from farm.errors import BenchmarkError
from farm.science.parity import classify
from worker import isolation
from worker.child import Child
from worker.engines.contract import BuildInfo, PreparedPrompt
from worker.engines.waiting import LISTEN_S
from worker.models import overrides

DISTRIBUTION = "llama-cpp-python"
_ROOT = Path(__file__).resolve().parents[2]


class InProcessEngine:
    """A child that has a pair loaded."""

    def __init__(self, child: Child, build: BuildInfo, loaded: dict[str, Any]) -> None:
        """loaded: the parameters of models and contexts by role, as the child read them."""
        self._child = child
        self._loaded = loaded
        self.build = build
        self.isolation = isolation.held(child.log_text())

    def run(
        self, spec: JobSpec, prompts: list[PreparedPrompt], deadline: float
    ) -> Iterator[Sample | None]:
        """Run a job in the child; see `worker.engines.contract.Engine`."""
        job = {
            "prompts": [asdict(prompt) for prompt in prompts],
            "speculation": asdict(spec.speculation),
            "temperature": spec.sampling.temperature,
            "seed": spec.sampling.seed,
            "generate_tokens": spec.generate_tokens,
            "repeats": spec.repeats,
        }
        if spec.settings.lossy and spec.sampling.temperature <= 0:
            own, unmodified = asdict(spec.settings), asdict(spec.settings.unmodified)
            job["unmodified"] = {
                name: value for name, value in unmodified.items() if value != own[name]
            }
        self._child.send({"do": "run", "job": job})
        while True:
            message = _listen(self._child, deadline)
            if message is None:
                yield None
            elif message["event"] == "sample":
                yield _sample(message["sample"])
            elif message["event"] == "done":
                return

    def parameters(self, spec: JobSpec) -> dict[Arm, dict[str, Any]]:
        """Return llama.cpp's parameters as they were in force."""
        baseline = {
            "target": self._loaded["target"],
            "generate_tokens": spec.generate_tokens,
            "temperature": spec.sampling.temperature,
            "numa": spec.settings.numa,
        }
        speculative = {"draft": self._loaded.get("draft"), "speculation": asdict(spec.speculation)}
        return {Arm.BASELINE: baseline, Arm.SPECULATIVE: baseline | speculative}

    def log_tail(self) -> str:
        """Return the end of llama.cpp's log."""
        return self._child.log_tail()

    def end(self) -> None:
        """End the child's process group."""
        self._child.end()


class InProcessFactory:
    """Starts children of this interpreter."""

    name = IN_PROCESS
    needs_files = True

    def builds(self) -> tuple[str, ...]:
        """Return the installed llama-cpp-python, if any."""
        try:
            return (f"{DISTRIBUTION}=={metadata.version(DISTRIBUTION)}",)
        except metadata.PackageNotFoundError:
            return ()

    def load(
        self, spec: JobSpec, target: Path, draft: Path | None, log: Path, deadline: float
    ) -> InProcessEngine:
        """Start a child and load the pair; the child is ended when that fails."""
        environment = isolation.environment()
        environment |= {"PYTHONPATH": str(_ROOT), "PYTHONUNBUFFERED": "1"}
        models = [target, draft] if draft else [target]
        rules = isolation.policy(models, isolation.packages("llama_cpp", "numpy"))
        command = isolation.confined([sys.executable, "-m", "worker.bench"], rules)
        child = Child(command, log, environment)
        try:
            child.send(
                {
                    "do": "load",
                    "target_path": str(target),
                    "draft_path": str(draft) if draft else None,
                    "settings": asdict(spec.settings.spelled_out()),
                    "overrides": overrides(spec.settings, target),
                }
            )
            while (message := _listen(child, deadline)) is None:
                pass
            return InProcessEngine(child, BuildInfo(**message["build"]), message["parameters"])
        except BaseException as error:
            if isinstance(error, BenchmarkError):
                error.log_tail = child.log_tail()
            child.end()
            raise


def _listen(child: Child, deadline: float) -> dict[str, Any] | None:
    """Return the child's next message, None after LISTEN_S of silence.

    Raises BenchmarkError on a reported failure, and "timeout" past the deadline.
    """
    message = child.receive(min(deadline, time.monotonic() + LISTEN_S))
    if message is None:
        if time.monotonic() >= deadline:
            child.kill()
            raise BenchmarkError(
                "timeout", "The job ran past its time limit; raise job_timeout_s or ask for less."
            )
        return None
    if message["event"] == "failed":
        raise BenchmarkError(message["kind"], message["message"])
    return message


def _sample(message: dict[str, Any]) -> Sample:
    arm = Arm(message["arm"])
    parity = Parity.NOT_COMPARED
    if message.pop("compared"):
        parity = classify(message["first_divergence"], message["margin_logits"])
    arrays = ("output_ids", "accepted_per_position", "drafted_per_position")
    tuples = {name: tuple(message[name]) for name in arrays}
    generated = {"generated_tokens": len(tuples["output_ids"])}
    return Sample(**message | tuples | generated | {"arm": arm, "parity": parity})
