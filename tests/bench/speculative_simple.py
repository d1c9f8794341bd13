"""In-process speculation against llama-speculative-simple, at the same rounds.

What its "decoded N tokens in S seconds" covers (examples/speculative-simple): everything from the
first drafted token on, drafting, verifying, sampling, printing, rolling back. It reads the prompt
but the last token before, and starts its first round from that one. Ours takes a first token out
of the prompt's own pass, and its decode time starts there. So it gets our prompt and our first
token's text behind it: then both start from the same token, with the same cache.

Towards the end ours drafts only what can still be used; theirs does too, but takes "no more than
0" for "no limit" and may overshoot. The number of tokens is chosen by the pair's law so that
neither happens: rounds, drafted and accepted tokens must come out equal, and that is checked.
It samples greedily with its temperature sampler alone (--temp 0), its cheapest way.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass

from farm.domain.job import Arm, JobSpec
from farm.errors import BenchmarkError
from farm.gguf.calibration import Law, start_state
from tests.bench.rig import CATEGORY, CONTEXT_TOKENS, Rig, run, speed
from tests.bench.timing import Figure, interleave, paired_ratio
from worker.engines.contract import Engine

BAR = 1.0
TRIES = 5
K = (4, 8, 16)
TEXT = "def mean(values):\n    total = 0\n    for value in values:\n        total += value\n" * 3

_DECODED = re.compile(r"decoded +(\d+) tokens in +([\d.]+) seconds")
_COUNT = re.compile(r"\b(n_drafted|n_accept) += (\d+)")


@dataclass(frozen=True)
class Work:
    """What a run did after its first token."""

    tokens: int
    drafted: int
    accepted: int


@dataclass(frozen=True)
class Decoded:
    """A run's work and its speed in tok/s."""

    work: Work
    tok_s: float


def measure(rig: Rig) -> list[Figure]:
    """Return the ratio of the two speeds at each K."""
    with rig.loaded(rig.spec(K[0], rig.tokens)) as engine:
        return [_at(rig, engine, n_max) for n_max in K]


def _at(rig: Rig, engine: Engine, n_max: int) -> Figure:
    asked, work = equal_work(rig.law, start_state(rig.law, CATEGORY, TEXT), n_max, rig.tokens)
    spec = rig.spec(n_max, work.tokens)
    readings = interleave(
        {
            "ours": lambda: _in_process(rig, engine, spec),
            "theirs": lambda: _speculative_simple(rig, n_max, asked),
        },
        rig.rounds,
    )
    for name, runs in readings.items():
        for decoded in runs:
            if decoded.work != work:
                raise BenchmarkError(
                    "garbage", f"At K={n_max} {name} did {decoded.work}, not {work}."
                )
    speeds = ([decoded.tok_s for decoded in runs] for runs in readings.values())
    return paired_ratio(f"in-process K={n_max} / llama-speculative-simple", *speeds, "tok/s", BAR)


def equal_work(law: Law, start: int, n_max: int, tokens: int) -> tuple[int, Work]:
    """Return what to ask llama-speculative-simple for, `tokens` or somewhat more, so that ours
    does the same work for as many tokens as it then decodes."""
    agrees, state = [], start
    for _ in range(2 * CONTEXT_TOKENS):
        state = int(law.successors[state, 0])
        agrees.append(bool(law.agrees[state]))
    for asked in range(tokens, CONTEXT_TOKENS - len(TEXT) - n_max):
        theirs = _theirs(agrees, n_max, asked)
        if _ours(agrees, n_max, theirs.tokens) == theirs:
            return asked, theirs
    raise BenchmarkError("bad-request", f"No length makes both do the same work at K={n_max}.")


def _ours(agrees: list[bool], n_max: int, tokens: int) -> Work:
    done = Work(0, 0, 0)
    while done.tokens < tokens:
        done = _round(agrees, done, min(n_max, tokens - done.tokens - 1))
    return done


def _theirs(agrees: list[bool], n_max: int, asked: int) -> Work:
    done = Work(0, 0, 0)
    while done.tokens <= asked:
        room = max(asked - done.tokens - 1, 0)
        done = _round(agrees, done, min(n_max, room) if room else n_max)
    return done


def _round(agrees: list[bool], before: Work, drafted: int) -> Work:
    guesses = agrees[before.tokens : before.tokens + drafted]
    accepted = (*guesses, False).index(False)
    return Work(before.tokens + accepted + 1, before.drafted + drafted, before.accepted + accepted)


def _in_process(rig: Rig, engine: Engine, spec: JobSpec) -> Decoded:
    sample = run(engine, spec, rig.prompt(TEXT))[Arm.SPECULATIVE]
    return Decoded(
        Work(sample.generated_tokens - 1, sample.drafted, sample.accepted), speed(sample)
    )


def _speculative_simple(rig: Rig, n_max: int, asked: int) -> Decoded:
    target, draft = rig.pair
    start = start_state(rig.law, CATEGORY, TEXT)
    first = rig.law.marker(int(rig.law.successors[start, 0]))
    command = [rig.tools.path("llama-speculative-simple"), "-m", target, "-md", draft]
    command += ["-p", rig.prompt(TEXT) + first, "-n", asked, "-c", CONTEXT_TOKENS]
    command += ["-t", rig.threads, "-td", rig.threads, "--temp", 0, "--samplers", "temperature"]
    command += ["--spec-type", "draft-simple", "--spec-draft-n-max", n_max]
    command += ["--spec-draft-n-min", 0, "--spec-draft-p-min", 0, "-fit", "off"]
    said = _said([str(part) for part in command])
    decoded, counts = _DECODED.search(said), dict(_COUNT.findall(said))
    if decoded is None or len(counts) < 2:
        raise BenchmarkError("garbage", f"llama-speculative-simple tells no speed:\n{said[-1000:]}")
    tokens, seconds = int(decoded[1]), float(decoded[2])
    work = Work(tokens, int(counts["n_drafted"]), int(counts["n_accept"]))
    return Decoded(work, tokens / seconds)


def _said(command: list[str]) -> str:
    # It logs in a thread, and now and then ends before the last lines are out.
    for _ in range(TRIES):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        said = done.stdout + done.stderr
        if done.returncode != 0:
            raise BenchmarkError("crashed", f"llama-speculative-simple failed:\n{said[-1000:]}")
        if "n_accept" in said:
            break
    return said
