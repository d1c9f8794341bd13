"""The llama-server engine: what is served is what is measured.

Speculation is fixed when a server starts, so a job has two: one without and one with. Both are up
at once where memory allows, and only one of them decodes at a time.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from farm.builds import tools
from farm.builds.arguments import arguments
from farm.builds.artefact import SERVER, examine
from farm.builds.dialect import ask, require_devices
from farm.builds.tools import ToolBuild
from farm.domain.engines import LLAMA_SERVER
from farm.domain.job import Arm, JobSpec
from farm.domain.measurement import Parity, Sample
from farm.errors import BenchmarkError
from worker.bench.depth import at_depth
from worker.bench.warm_up import STAYS_WARM_S, WARM_UP_TEXT, WARM_UP_TOKENS
from worker.engines.comparison import References, compared
from worker.engines.completion import Completion, Finding, read_completion, request
from worker.engines.contract import BuildInfo, PreparedPrompt
from worker.engines.load import Load, fill_ins
from worker.engines.pairing import (
    ARMS,
    LEAST_TOKENS_TO_DRAFT,
    Step,
    in_blocks,
    in_turns,
    interleaved,
    of_one_arm,
    seed_of,
)
from worker.engines.server import Server
from worker.engines.waiting import Waiting
from worker.models import fits_twice, overrides

# Flags whose values are one run's alone, and what stands for them in a job's parameters.
RUNS_OWN = {"--port": "PORT", "--api-key": "KEY", "--seed": "SEED"}


@dataclass
class _Item:
    """One prompt's two runs, as they come."""

    prompt: PreparedPrompt
    step: Step
    runs: dict[Arm, Completion]

    def finding(self, spec: JobSpec) -> Finding | None:
        """Return what the speculative text is to the baseline's, None where they part: why they do
        is the baseline server's to tell."""
        if spec.speculation.what_if is not None:
            return Finding(Parity.NOT_VALID)
        if spec.sampling.temperature > 0:
            return Finding(Parity.NOT_COMPARED)
        plain, drafted = (self.runs[arm].output_ids for arm in ARMS)
        return Finding(Parity.EXACT) if plain == drafted else None


class LlamaServerEngine:
    """Two llama-servers of one build with one target. Serves any job of their pair_key: what else a
    job asks for (kind, K, temperature) starts the servers anew that need it."""

    def __init__(
        self, build: ToolBuild, target: Path, draft: Path | None, log: Path, side_by_side: bool
    ) -> None:
        self.build = BuildInfo(
            digest=build.digest,
            name=build.name,
            system_info=f"build {build.number}, commit {build.commit}, {build.compiler}",
            commit=build.commit,
        )
        self._binary = build.path(SERVER)
        self._target = target
        self._draft = draft
        self._log = log
        self._side_by_side = side_by_side
        self._servers: dict[Arm, Server] = {}
        self._at_depth: dict[PreparedPrompt, list[int]] = {}
        self._fillers: dict[str, list[int]] = {}
        self._references = References(self._unmodified, self._in_context)
        self._ran_at = 0.0
        self.isolation = ""
        self._numbers = itertools.count(1)

    def load(self, spec: JobSpec, deadline: float) -> None:
        """Start what the job needs first, so that it is known to load."""
        for arm in ARMS if self._side_by_side else ARMS[:1]:
            for _ in self._up(arm, spec, deadline):
                pass
            self.isolation = self._servers[arm].isolation

    def run(
        self, spec: JobSpec, prompts: list[PreparedPrompt], deadline: float
    ) -> Iterator[Sample | None]:
        """Run a job; see `worker.engines.contract.Engine`.

        Both arms of a run draw from one seed. llama.cpp accepts a drafted token when its own
        sampler draws the same, so that both produce the same text above temperature 0 as well, and
        differ in speed alone.
        """
        items: dict[tuple[int, int], _Item] = {}
        waiting: list[_Item] = []
        if new := self._references.missing(spec, prompts):
            self._end_servers()
            yield from self._references.prepare(spec, new, deadline)
        drafted, could_draft = 0, False
        speculative: Server | None = None
        for steps in self._order(spec, len(prompts)):
            yield from self._ready(steps, spec, prompts, deadline)
            for answered in self._answers(steps, spec, prompts, deadline):
                if answered is None:
                    yield None
                    continue
                step, run = answered
                key = (step.repeat, step.prompt)
                item = items.setdefault(key, _Item(prompts[step.prompt], step, {}))
                item.runs[step.arm] = run
                if step.arm is Arm.SPECULATIVE:
                    # Where two don't fit the baseline has taken its place by the end.
                    speculative = self._servers[step.arm]
                    drafted += run.drafted
                    could_draft |= len(run.output_ids) >= LEAST_TOKENS_TO_DRAFT
                if len(item.runs) < len(ARMS):
                    continue
                del items[key]
                if (found := item.finding(spec)) is not None:
                    yield from self._samples(item, spec, found)
                else:
                    waiting.append(item)
            # A margin is the baseline's to tell, so a divergence waits until that is up and idle.
            if Arm.BASELINE in self._servers:
                yield from self._finish(waiting, spec, deadline)
        if waiting:
            yield from self._up(Arm.BASELINE, spec, deadline)
            yield from self._finish(waiting, spec, deadline)
        if speculative and drafted == 0 and could_draft and _must_draft(spec):
            raise speculative.not_speculating("not one token was drafted in the whole job")

    def parameters(self, spec: JobSpec) -> dict[Arm, dict[str, Any]]:
        """Return each server's whole command line and what it is asked for."""
        asked = request("", spec.generate_tokens, spec.sampling, 0)
        del asked["prompt"], asked["seed"]
        found: dict[Arm, dict[str, Any]] = {
            arm: {"command": self._command(arm, spec), "request": asked} for arm in ARMS
        }
        found[Arm.SPECULATIVE]["servers"] = "both up" if self._side_by_side else "one at a time"
        return found

    def log_tail(self) -> str:
        """Return the end of both servers' logs."""
        tails = [
            f"--- {arm} ---\n{server.process.log_tail()}" for arm, server in self._servers.items()
        ]
        return "\n".join(tails)

    def end(self) -> None:
        """End every server."""
        self._references.end()
        self._end_servers()

    def _end_servers(self) -> None:
        for server in self._servers.values():
            server.end()
        self._servers.clear()

    def _order(self, spec: JobSpec, prompts: int) -> Iterable[list[Step]]:
        """Return the runs in order, those together that one server works on at once."""
        remembers = spec.speculation.kind.is_ngram
        if spec.settings.concurrent_requests > 1:
            order = in_turns if self._side_by_side else in_blocks
            return of_one_arm(order(prompts, spec.repeats), remembers=remembers)
        order = interleaved if self._side_by_side else in_blocks
        return [[step] for step in order(prompts, spec.repeats)]

    def _ready(
        self, steps: list[Step], spec: JobSpec, prompts: list[PreparedPrompt], deadline: float
    ) -> Waiting[None]:
        """Have an arm's server up and warm, and new where it would remember a prompt."""
        arm = steps[0].arm
        running = self._servers.get(arm)
        remembers = arm is Arm.SPECULATIVE and spec.speculation.kind.is_ngram
        texts = {prompts[step.prompt].text for step in steps}
        if running and remembers and texts & running.prompts_seen:
            running.end()
            del self._servers[arm]
        yield from self._up(arm, spec, deadline)
        server = self._servers[arm]
        is_cold = not server.prompts_seen or time.monotonic() - self._ran_at > STAYS_WARM_S
        # The fill-ins that come before recorded runs warm a server that works on several.
        if is_cold and spec.settings.concurrent_requests == 1:
            text = WARM_UP_TEXT if spec.speculation.kind.is_ngram else prompts[0].text
            tokens = min(WARM_UP_TOKENS, spec.generate_tokens)
            yield from server.complete(request(text, tokens, spec.sampling, 0), deadline)
        server.prompts_seen |= texts

    def _up(self, arm: Arm, spec: JobSpec, deadline: float) -> Waiting[None]:
        wanted = self._server(arm, spec)
        running = self._servers.get(arm)
        if running is not None and running.identity == wanted.identity:
            if running.process.is_running:
                return
            raise running.process.gone()
        for other, server in list(self._servers.items()):
            if other is arm or not self._side_by_side:
                server.end()
                del self._servers[other]
        self._servers[arm] = wanted
        yield from wanted.start(deadline)

    def _unmodified(self, spec: JobSpec) -> Server:
        plain = replace(spec, settings=spec.settings.unmodified)
        return self._server(Arm.BASELINE, plain, "reference")

    def _server(self, arm: Arm, spec: JobSpec, role: str = "") -> Server:
        dialect = ask(self.build.name, self._binary)
        speculates = arm is Arm.SPECULATIVE
        draft = self._draft if speculates else None
        return Server(
            self._binary,
            lambda port, key: arguments(
                dialect,
                spec.speculation if speculates else None,
                spec.settings,
                spec.sampling,
                self._target,
                draft,
                port,
                key,
                overrides(spec.settings, self._target),
            ),
            [self._target, draft] if draft else [self._target],
            self._log.with_suffix(f".{role or arm}.log"),
            speculates,
            spec.settings.concurrent_requests,
        )

    def _command(self, arm: Arm, spec: JobSpec) -> list[str]:
        _, *words = self._server(arm, spec).identity
        names = {str(self._draft): "DRAFT", str(self._target): "TARGET"}
        return [SERVER] + [
            RUNS_OWN.get(flag, names.get(word, word))
            for flag, word in zip([SERVER, *words], words, strict=False)
        ]

    def _answers(
        self, steps: list[Step], spec: JobSpec, prompts: list[PreparedPrompt], deadline: float
    ) -> Generator[tuple[Step, Completion] | None, None, None]:
        """Yield what the server answers to these runs of one arm as it comes, None while it works.

        `/metrics` counts for the server as a whole, so it tells nothing of one run among others.
        """
        server = self._servers[steps[0].arm]

        asked = [
            request(
                self._in_context(server, prompts[step.prompt], spec),
                spec.generate_tokens,
                spec.sampling,
                seed_of(spec.sampling.seed, step),
            )
            for step in steps
        ]
        if spec.settings.concurrent_requests == 1:
            counts = steps[0].arm is Arm.SPECULATIVE
            before = server.counters() if counts else None
            answer = yield from server.complete(asked[0], deadline)
            after = server.counters() if counts else None
            self._ran_at = time.monotonic()
            prompt = prompts[steps[0].prompt]
            peak = server.peak_rss_bytes()
            yield steps[0], read_completion(answer, spec, prompt, before, after, peak)
            return
        # All of them, for their fillers: under load the server is to tokenise nothing long.
        for prompt in prompts:
            self._in_context(server, prompt, spec)
        beside = fill_ins(
            spec,
            prompts,
            self._numbers,
            lambda prompt: self._in_context(server, prompt, spec, keep=False),
        )
        load = Load(server, spec.settings.concurrent_requests, asked, beside)
        for found in load.run(deadline):
            if found is None:
                yield None
                continue
            index, answer = found
            prompt = prompts[steps[index].prompt]
            peak = server.peak_rss_bytes()
            yield steps[index], read_completion(answer, spec, prompt, None, None, peak)

    def _in_context(
        self, server: Server, prompt: PreparedPrompt, spec: JobSpec, *, keep: bool = True
    ) -> str | list[int]:
        """Return a prompt as it is sent: as text, or at a depth as token ids. keep: it will be
        asked for again."""
        depth, filler = spec.settings.depth_tokens, prompt.depth_text
        if not depth:
            return prompt.text
        if prompt in self._at_depth:
            return self._at_depth[prompt]
        if filler not in self._fillers:
            self._fillers[filler] = server.tokenize(filler, bare=True)
        whole, bare = (server.tokenize(prompt.text, bare=bare) for bare in (False, True))
        tokens = at_depth(whole, bare, self._fillers[filler], depth)
        if keep:
            self._at_depth[prompt] = tokens
        return tokens

    def _finish(
        self, waiting: list[_Item], spec: JobSpec, deadline: float
    ) -> Generator[Sample | None, None, None]:
        while waiting:
            item = waiting.pop(0)
            server = self._servers[Arm.BASELINE]
            prompt = self._in_context(server, item.prompt, spec)
            plain, drafted = (item.runs[arm].output_ids for arm in ARMS)
            found = yield from compared(server, spec, prompt, plain, drafted, deadline)
            yield from self._samples(item, spec, found)

    def _samples(self, item: _Item, spec: JobSpec, found: Finding) -> Iterator[Sample]:
        """Yield both arms' samples. found: what the speculative text is to the baseline's."""
        plain = item.runs[Arm.BASELINE]
        lossy = self._references.compared(spec, item.prompt, plain.output_ids)
        yield plain.sample(item.step.repeat, Arm.BASELINE, lossy)
        yield item.runs[Arm.SPECULATIVE].sample(item.step.repeat, Arm.SPECULATIVE, found)


class LlamaServerFactory:
    """Starts the llama-servers of the builds that are here."""

    name = LLAMA_SERVER
    needs_files = True

    def builds(self) -> tuple[str, ...]:
        """Return the builds of `farm builds list`."""
        return tuple(build.name for build in tools.installed())

    def load(
        self, spec: JobSpec, target: Path, draft: Path | None, log: Path, deadline: float
    ) -> LlamaServerEngine:
        """Start both servers, or the baseline alone where memory is too small for two."""
        build = tools.find(spec.build)
        if build is None:
            raise BenchmarkError("build-changed", f"The build {spec.build} is not here any more.")
        if examine(build.folder).digest != build.digest:
            raise BenchmarkError(
                "build-changed",
                f"The binaries in {build.folder} are not those of {spec.build}; register them "
                "again with 'farm builds add' and submit the sweep again.",
            )
        if spec.settings.draft_device is not None:
            require_devices(build.path(SERVER), spec.settings.draft_device)
        side_by_side = fits_twice(spec, target, draft)
        engine = LlamaServerEngine(build, target, draft, log, side_by_side)
        try:
            engine.load(spec, deadline)
        except BaseException as error:
            if isinstance(error, BenchmarkError):
                error.log_tail = error.log_tail or engine.log_tail()
            engine.end()
            raise
        return engine


def _must_draft(spec: JobSpec) -> bool:
    """Say whether a job without one drafted token can only mean that nothing speculates.

    n-gram kinds may find nothing to repeat, and a draft may never be as sure as p_min asks.
    """
    speculation = spec.speculation
    return speculation.kind.takes_draft and speculation.p_min <= 0 and speculation.n_min <= 1
