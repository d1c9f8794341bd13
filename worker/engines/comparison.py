"""What two greedy texts of llama-servers are to each other: where they part, and why."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from farm.domain.job import JobSpec
from farm.domain.measurement import Parity
from farm.errors import BenchmarkError
from farm.science.parity import classify, first_divergence
from worker.engines.completion import Finding, margin_at, margin_in, request
from worker.engines.contract import PreparedPrompt
from worker.engines.server import Server
from worker.engines.waiting import Waiting

# What it means that the unmodified target has no room beside what else runs.
TOO_LITTLE_MEMORY = ("load-failed", "out-of-memory")

# A prompt as a server gets it: a text, or token ids.
Sent = str | list[int]

log = logging.getLogger(__name__)


def compared(
    server: Server,
    spec: JobSpec,
    prompt: Sent,
    baseline_ids: tuple[int, ...],
    speculative_ids: tuple[int, ...],
    deadline: float,
) -> Waiting[Finding]:
    """Return the finding of a speculative text. server: the baseline's; prompt: as it had it.

    For the control the baseline reads its own path as a prompt, in passes of the physical batch.
    For the margin it walks that path again, token by token. Where neighbours took part in the
    arithmetic it might not arrive at the same place, and the margin is the control's.
    """
    position = first_divergence(baseline_ids, speculative_ids)
    if position is None:
        return Finding(Parity.EXACT)
    start = [prompt] if isinstance(prompt, str) else prompt
    read = request([*start, *baseline_ids[:position]], 1, spec.sampling, 0, alternatives=2)
    answer = yield from server.complete(read, deadline)
    control = next(map(int, answer.get("tokens", ())), None)
    margin = margin_at(answer, 0)
    if spec.settings.concurrent_requests == 1:
        walk = request(prompt, position + 1, spec.sampling, 0, alternatives=2)
        margin = margin_in((yield from server.complete(walk, deadline)), baseline_ids, position)
    return Finding(classify(position, margin), position, margin, control)


class References:
    """The unmodified target's greedy answers, one per prompt, kept for all jobs of a load."""

    def __init__(
        self,
        server: Callable[[JobSpec], Server],
        sent: Callable[[Server, PreparedPrompt, JobSpec], Sent],
    ) -> None:
        """server: makes one of the unmodified target; sent: what it gets for a prompt."""
        self._server_for = server
        self._sent = sent
        self._server: Server | None = None
        self._answers: dict[tuple[PreparedPrompt, int], dict[str, Any]] = {}
        self._has_room = True

    def missing(self, spec: JobSpec, prompts: list[PreparedPrompt]) -> list[PreparedPrompt]:
        """Return the prompts whose reference a job needs and has not: none unless it is lossy, and
        none where the unmodified target did not start."""
        if not self._has_room or not spec.settings.lossy or spec.sampling.temperature > 0:
            return []
        return [p for p in prompts if (p, spec.generate_tokens) not in self._answers]

    def prepare(
        self, spec: JobSpec, prompts: list[PreparedPrompt], deadline: float
    ) -> Waiting[None]:
        """Decode prompts on a server of the unmodified target, which is gone afterwards.

        Where it does not start there is no reference: the log says so, and the jobs of this load
        are measured without.
        """
        self._server = self._server_for(spec)
        try:
            try:
                yield from self._server.start(deadline)
            except BenchmarkError as error:
                if error.kind not in TOO_LITTLE_MEMORY:
                    raise
                self._has_room = False
                log.warning("No reference of the unmodified target: %s", error)
                return
            for prompt in prompts:
                tokens = spec.generate_tokens
                sent = self._sent(self._server, prompt, spec)
                asked = request(sent, tokens, spec.sampling, 0, alternatives=2)
                answer = yield from self._server.complete(asked, deadline)
                self._answers[prompt, tokens] = answer
        finally:
            self.end()

    def compared(
        self, spec: JobSpec, prompt: PreparedPrompt, baseline_ids: tuple[int, ...]
    ) -> Finding:
        """Return the finding of a baseline's text."""
        answer = self._answers.get((prompt, spec.generate_tokens))
        if answer is None or spec.sampling.temperature > 0:
            return Finding()
        ids = tuple(int(token) for token in answer["tokens"])
        position = first_divergence(ids, baseline_ids)
        margin = None if position is None else margin_in(answer, ids, position)
        return Finding(classify(position, margin), position, margin)

    def end(self) -> None:
        """End the server, if one runs."""
        if self._server is not None:
            self._server.end()
            self._server = None
