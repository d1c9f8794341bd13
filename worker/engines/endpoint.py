"""The endpoint engine: two servers that run already, one of which speculates.

What they do is theirs; a job says which is which, what to generate and how to draw it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farm.domain.engines import ENDPOINT
from farm.domain.job import Arm, JobSpec
from farm.domain.measurement import Parity, Sample
from farm.endpoints import register
from farm.endpoints.served import Served, ask, build_digest, target_digest
from farm.errors import BenchmarkError, UserError
from farm.science.parity import classify
from worker.bench.warm_up import STAYS_WARM_S, WARM_UP_TEXT, WARM_UP_TOKENS
from worker.engines.answers import Answer
from worker.engines.contract import BuildInfo, PreparedPrompt
from worker.engines.endpoint_samples import compare, margin, sample_of
from worker.engines.pairing import ARMS, LEAST_TOKENS_TO_DRAFT, Step, interleaved, seed_of
from worker.engines.remote import Remote
from worker.engines.waiting import Waiting


@dataclass
class _Item:
    """One prompt's two runs, as they come."""

    prompt: PreparedPrompt
    step: Step
    runs: dict[Arm, Answer]


class EndpointEngine:
    """Two endpoints of this machine's register, as one pair."""

    def __init__(self, remotes: dict[Arm, Remote]) -> None:
        plain, fast = (remotes[arm].served for arm in ARMS)
        places = [remotes[arm].endpoint.place for arm in ARMS]
        self.build = BuildInfo(
            digest=build_digest(plain, fast, places),
            name=register.pair_build(*(remotes[arm].endpoint.name for arm in ARMS)),
            system_info="; ".join(f"{arm}: {_described(remotes[arm].served)}" for arm in ARMS),
        )
        self.isolation = "none: the servers were running already"
        self._remotes = remotes
        self._warmed: set[Arm] = set()
        self._ran_at = 0.0

    def run(
        self, spec: JobSpec, prompts: list[PreparedPrompt], deadline: float
    ) -> Iterator[Sample | None]:
        """Run a job; see `worker.engines.contract.Engine`."""
        yield from self._still_the_same(deadline)
        items: dict[tuple[int, int], _Item] = {}
        drafted: int | None = 0
        could_draft = False
        for step in interleaved(len(prompts), spec.repeats):
            prompt = prompts[step.prompt]
            item = items.setdefault((step.repeat, step.prompt), _Item(prompt, step, {}))
            answer = yield from self._complete(step, spec, prompt, deadline)
            item.runs[step.arm] = answer
            counted = answer.drafts.drafted if answer.drafts else None
            if step.arm is Arm.BASELINE and counted:
                raise self._speculates_unasked(counted)
            if step.arm is Arm.SPECULATIVE:
                drafted = None if drafted is None or counted is None else drafted + counted
                could_draft |= answer.generated_tokens >= LEAST_TOKENS_TO_DRAFT
            if len(item.runs) == len(ARMS):
                yield from self._finish(items.pop((step.repeat, step.prompt)), spec, deadline)
        if drafted == 0 and could_draft:
            raise BenchmarkError(
                "not-speculating",
                f"The endpoint {self._remotes[Arm.SPECULATIVE].endpoint.name} drafted not one "
                "token in the whole job: start its server with speculation, or with a kind that "
                "finds something to draft in this content.",
            )

    def parameters(self, spec: JobSpec) -> dict[Arm, dict[str, Any]]:
        """Return what each server says of itself, and what it is asked for."""
        return {
            arm: remote.parameters(spec.generate_tokens, spec.sampling)
            for arm, remote in self._remotes.items()
        }

    def log_tail(self) -> str:
        """Return nothing: the servers' logs are where they were started."""
        return ""

    def end(self) -> None:
        """Hang up; the servers go on."""
        for remote in self._remotes.values():
            remote.hang_up()

    def _still_the_same(self, deadline: float) -> Waiting[None]:
        """Make sure that nobody has started another server at an address since."""
        for remote in self._remotes.values():
            if (yield from remote.ask_again(deadline)) != remote.served:
                raise BenchmarkError(
                    "model-changed",
                    f"The endpoint {remote.endpoint.name} is not what it was when this pair was "
                    "first measured; submit the sweep again to measure the new one.",
                )

    def _complete(
        self, step: Step, spec: JobSpec, prompt: PreparedPrompt, deadline: float
    ) -> Waiting[Answer]:
        remote = self._remotes[step.arm]
        if step.arm not in self._warmed or time.monotonic() - self._ran_at > STAYS_WARM_S:
            tokens = min(WARM_UP_TOKENS, spec.generate_tokens)
            yield from remote.complete(WARM_UP_TEXT, tokens, spec.sampling, 0, deadline)
            self._warmed.add(step.arm)
        seed = seed_of(spec.sampling.seed, step)
        answer = yield from remote.complete(
            prompt.text, spec.generate_tokens, spec.sampling, seed, deadline, counted=True
        )
        self._ran_at = time.monotonic()
        return answer

    def _finish(self, item: _Item, spec: JobSpec, deadline: float) -> Iterator[Sample | None]:
        plain, fast = (item.runs[arm] for arm in ARMS)
        apis = {remote.served.api for remote in self._remotes.values()}
        by_ids = plain.ids is not None and fast.ids is not None and len(apis) == 1
        parity, position, gap = Parity.NOT_COMPARED, None, None
        if spec.sampling.temperature <= 0:
            position = compare(plain, fast, by_ids=by_ids)
            if position is not None:
                # The baseline walks its own path again, as it did before, and says how sure it was.
                walk = yield from self._remotes[Arm.BASELINE].complete(
                    item.prompt.text,
                    spec.generate_tokens,
                    spec.sampling,
                    0,
                    deadline,
                    alternatives=2,
                )
                gap = margin(walk, plain, position, by_ids=by_ids)
            parity = classify(position, gap)
        digest, repeat = item.prompt.digest, item.step.repeat
        yield sample_of(plain, digest, repeat, Arm.BASELINE, by_ids=by_ids)
        yield sample_of(fast, digest, repeat, Arm.SPECULATIVE, parity, position, gap, by_ids=by_ids)

    def _speculates_unasked(self, drafted: int) -> BenchmarkError:
        name = self._remotes[Arm.BASELINE].endpoint.name
        return BenchmarkError(
            "unsupported",
            f"The baseline endpoint {name} speculates itself ({drafted} tokens drafted for one "
            "prompt): name one that decodes without.",
        )


class EndpointFactory:
    """Finds a job's two endpoints in this machine's register."""

    name = ENDPOINT
    needs_files = False

    def builds(self) -> tuple[str, ...]:
        """Return every ordered pair of registered endpoints."""
        return register.pair_builds()

    def load(
        self, spec: JobSpec, target: Path, draft: Path | None, log: Path, deadline: float
    ) -> EndpointEngine:
        """Ask both endpoints what they are; their servers have loaded the model already.

        target, draft and log are not looked at. Raises BenchmarkError "build-changed" where an
        endpoint is not registered any more, "model-changed" where it serves another model than at
        planning, and what asking raises.
        """
        try:
            names = register.pair_names(spec.build)
            endpoints = [register.find(name) for name in names]
        except UserError as error:
            raise BenchmarkError("build-changed", str(error)) from None
        try:
            served: list[Served] = [ask(endpoint) for endpoint in endpoints]
        except UserError as error:
            raise BenchmarkError("unsupported", str(error)) from None
        if target_digest(*served) != spec.target.digest:
            models = " and ".join(f"{one.model} ({one.server})" for one in served)
            raise BenchmarkError(
                "model-changed",
                f"The endpoints {' and '.join(names)} serve {models} on this machine, not what "
                "they served where the sweep was submitted; submit it again, or name them apart.",
            )
        remotes = {
            arm: Remote(endpoint, one)
            for arm, endpoint, one in zip(ARMS, endpoints, served, strict=True)
        }
        return EndpointEngine(remotes)


def _described(served: Served) -> str:
    facts = ", ".join(f"{key} {value}" for key, value in served.facts)
    draft = f", draft model {served.draft_model}" if served.draft_model else ""
    return f"{served.server}, model {served.model}{f' ({facts})' if facts else ''}{draft}"
