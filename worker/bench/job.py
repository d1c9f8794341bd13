"""Running one job on a loaded pair: warm-up, interleaved arms, a sample per run."""

from __future__ import annotations

import hashlib
import math
import resource
import sys
from collections.abc import Iterator
from dataclasses import asdict
from time import monotonic
from typing import Any

import numpy as np

from worker.bench.control import control_token
from worker.bench.decode import Run, baseline, speculative, top_two_margin
from worker.bench.depth import at_depth
from worker.bench.drafters import Drafter, ModelDrafter, PromptLookup
from worker.bench.failure import Failure
from worker.bench.llama import Context, Model
from worker.bench.load import choose_numa
from worker.bench.peak import high_water_bytes
from worker.bench.reference import References
from worker.bench.sampling import rule
from worker.bench.warm_up import STAYS_WARM_S, WARM_UP_TOKENS

ARMS = ("baseline", "speculative")
CACHES = ("cache_type_k", "cache_type_v")
NOT_COMPARED: dict[str, Any] = {
    "compared": False,
    "first_divergence": None,
    "margin_logits": None,
    "control_token": None,
}


class Pair:
    """A loaded target and, for the kinds that need one, a draft. Serves any number of jobs.

    overrides: numbers of the target's metadata that count in place of the file's.
    """

    def __init__(
        self,
        target_path: str,
        draft_path: str | None,
        settings: dict[str, Any],
        overrides: dict[str, int] | None = None,
    ) -> None:
        self._settings = settings
        choose_numa(settings["numa"])
        self._target_model = Model(target_path, settings["gpu_layers"], numbers=overrides)
        self._draft_model = None
        if draft_path:
            self._draft_model = Model(
                draft_path, settings["draft_gpu_layers"], settings["draft_device"]
            )
        self._contexts: dict[str, Context] = {}
        self._references = References(target_path, self._target_model, settings)
        self._ran_at = -math.inf
        if not self._target_model.rolls_back:
            raise Failure(
                "unsupported",
                "The target is recurrent or hybrid: rejected tokens can't be rolled back in "
                "process, so speculation can't be measured with it here.",
            )

    def parameters(self) -> dict[str, Any]:
        """Return by role what llama.cpp was told, defaults included; the contexts are made."""
        models = {"target": self._target_model, "draft": self._draft_model}
        return {
            role: {"model": model.parameters, "context": self._context(role, model).parameters}
            for role, model in models.items()
            if model is not None
        }

    def run(self, job: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield a sample per prompt x repeat x arm, in mirrored order (A B, B A, ...).

        job: prompts (digest, text, depth_text), speculation, temperature, seed, generate_tokens,
        repeats; unmodified: the settings that make the target the one that a lossy baseline is held
        against.
        """
        prompts = self._tokenised(job)
        if unmodified := job.get("unmodified"):
            self._refer(prompts, job["generate_tokens"], unmodified)
        target = self._context("target", self._target_model)
        if monotonic() - self._ran_at > STAYS_WARM_S:
            warm_up = {**job, "generate_tokens": min(WARM_UP_TOKENS, job["generate_tokens"])}
            # What is cold at first is not the depth, which may take minutes to read.
            tokens = prompts[0][1][self._settings["depth_tokens"] :]
            for arm in ARMS:
                self._run_arm(arm, target, tokens, warm_up, stream=(0, 0))
        order = 0
        for repeat in range(job["repeats"]):
            for number, (digest, tokens) in enumerate(prompts):
                arms = ARMS if order % 2 == 0 else ARMS[::-1]
                order += 1
                runs = {
                    arm: self._run_arm(arm, target, tokens, job, stream=(repeat + 1, number))
                    for arm in arms
                }
                findings = self._compare(target, tokens, runs, job)
                for arm in arms:
                    yield {
                        **asdict(runs[arm]),
                        "prompt_digest": digest,
                        "repeat": repeat,
                        "arm": arm,
                        "output_digest": _digest(runs[arm].output_ids),
                        "peak_rss_bytes": peak_rss_bytes(),
                        **findings[arm],
                    }
                self._ran_at = monotonic()

    def _refer(
        self,
        prompts: list[tuple[str, list[int]]],
        generate_tokens: int,
        unmodified: dict[str, Any],
    ) -> None:
        """Have the unmodified target's texts, with no cache of the arms' beside its own."""
        texts = [tokens for _, tokens in prompts]
        if new := self._references.missing(texts, generate_tokens):
            while self._contexts:
                self._contexts.popitem()[1].close()
            self._ran_at = -math.inf
            self._references.prepare(new, generate_tokens, unmodified)

    def _tokenised(self, job: dict[str, Any]) -> list[tuple[str, list[int]]]:
        room = self._settings["context_tokens"] - job["generate_tokens"] - job_n_max(job)
        prompts = []
        for prompt in job["prompts"]:
            tokens = self._in_context(prompt)
            if not tokens:
                raise Failure("bad-request", f"Prompt {prompt['digest'][:12]} has no tokens.")
            if len(tokens) > room:
                raise Failure(
                    "bad-request",
                    f"Prompt {prompt['digest'][:12]} has {len(tokens)} tokens and only {room} fit "
                    "beside what is generated; raise context_tokens in the sweep.",
                )
            prompts.append((prompt["digest"], tokens))
        return prompts

    def _in_context(self, prompt: dict[str, Any]) -> list[int]:
        """Return a prompt's tokens at the depth that the settings ask for."""
        model, depth = self._target_model, self._settings["depth_tokens"]
        tokens = model.tokenize(prompt["text"])
        if not depth:
            return tokens
        bare = model.tokenize(prompt["text"], bare=True)
        filler = model.tokenize(prompt["depth_text"], bare=True)
        return at_depth(tokens, bare, filler, depth)

    def _context(self, role: str, model: Model) -> Context:
        if role not in self._contexts:
            settings = self._settings
            if role == "draft":
                types = {name: settings[f"draft_{name}"] for name in CACHES}
                settings = settings | types
            self._contexts[role] = model.context(settings)
        return self._contexts[role]

    def _run_arm(
        self,
        arm: str,
        target: Context,
        tokens: list[int],
        job: dict[str, Any],
        stream: tuple[int, int],
    ) -> Run:
        rng = np.random.default_rng([job["seed"], *stream, ARMS.index(arm)])
        accept = job["speculation"]["accept"]
        draw = rule(job["temperature"], accept, rng)
        ends_text = self._target_model.ends_text
        if arm == "baseline":
            return baseline(target, draw, tokens, job["generate_tokens"], ends_text)
        drafter = self._drafter(job, np.random.default_rng([job["seed"], *stream, len(ARMS)]))
        n_max = job_n_max(job)
        return speculative(target, drafter, draw, tokens, job["generate_tokens"], n_max, ends_text)

    def _drafter(self, job: dict[str, Any], rng: np.random.Generator) -> Drafter:
        speculation = job["speculation"]
        if speculation["kind"] == "prompt-lookup":
            return PromptLookup(speculation["n_min"])
        if self._draft_model is None:
            raise Failure("bad-request", f"{speculation['kind']} needs a draft model.")
        return ModelDrafter(
            self._context("draft", self._draft_model),
            rule(job["temperature"], speculation["accept"], rng),
            self._target_model.vocab_tokens,
            speculation["p_min"],
            speculation["n_min"],
        )

    def _compare(
        self, target: Context, tokens: list[int], runs: dict[str, Run], job: dict[str, Any]
    ) -> dict[str, dict[str, Any]]:
        """Return per arm what its greedy text is next to its reference's.

        The speculative arm's reference is the baseline; the baseline's, where one was asked for,
        is the unmodified target.
        """
        findings = {arm: dict(NOT_COMPARED) for arm in ARMS}
        if job["temperature"] > 0:
            return findings
        plain, drafted = (runs[arm].output_ids for arm in ARMS)
        position = _first_difference(plain, drafted)
        findings["speculative"] |= {"compared": True, "first_divergence": position}
        if position is not None:
            findings["speculative"] |= {
                "margin_logits": top_two_margin(target, tokens, plain, position),
                "control_token": control_token(target, tokens, plain, position, job_n_max(job)),
            }
        reference = job.get("unmodified") and self._references.text(tokens, job["generate_tokens"])
        if reference:
            position = _first_difference(reference.output_ids, plain)
            findings["baseline"] |= {
                "compared": True,
                "first_divergence": position,
                "margin_logits": None if position is None else reference.margin(position),
            }
        return findings


def job_n_max(job: dict[str, Any]) -> int:
    """Return the job's K."""
    return int(job["speculation"]["n_max"])


def peak_rss_bytes() -> int:
    """Return the most memory this process has held so far."""
    # Linux's getrusage counts what the parent held when it started this process, too.
    if peak := high_water_bytes():
        return peak
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _first_difference(left: list[int], right: list[int]) -> int | None:
    """Return the first index at which two texts differ, one's end included."""
    if left == right:
        return None
    shortest = min(len(left), len(right))
    return next((i for i in range(shortest) if left[i] != right[i]), shortest)


def _digest(output_ids: list[int]) -> str:
    return hashlib.sha256(np.asarray(output_ids, "<i4").tobytes()).hexdigest()
