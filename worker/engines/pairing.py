"""In which order a job's runs happen: the arms of a prompt near in time, and mirrored."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from farm.domain.job import Arm

ARMS = (Arm.BASELINE, Arm.SPECULATIVE)
# With fewer tokens than this no round has room for a drafted one.
LEAST_TOKENS_TO_DRAFT = 3


@dataclass(frozen=True)
class Step:
    """One run of one prompt on one arm; prompt is an index."""

    arm: Arm
    repeat: int
    prompt: int


def seed_of(seed: int, step: Step) -> int:
    """Return what a run draws from: the same for both arms of a prompt."""
    text = f"{seed}:{step.repeat}:{step.prompt}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def interleaved(prompts: int, repeats: int) -> list[Step]:
    """Return both arms of each prompt side by side, A B and B A in turns."""
    items = [(repeat, prompt) for repeat in range(repeats) for prompt in range(prompts)]
    return [
        Step(arm, *item)
        for order, item in enumerate(items)
        for arm in (ARMS if order % 2 == 0 else ARMS[::-1])
    ]


def in_blocks(prompts: int, repeats: int) -> list[Step]:
    """Return the arms in blocks A B B A, for a machine that holds only one arm at a time.

    The first half of the runs is A B, the second B A: a drift of the machine weighs on both arms
    alike.
    """
    items = [(repeat, prompt) for repeat in range(repeats) for prompt in range(prompts)]
    middle = (len(items) + 1) // 2
    halves = ((items[:middle], ARMS), (items[middle:], ARMS[::-1]))
    return [Step(arm, *item) for half, arms in halves for arm in arms for item in half]


def in_turns(prompts: int, repeats: int) -> list[Step]:
    """Return the arms in blocks A B B A within each repeat, for arms that can't work side by side
    but are both there."""
    once = in_blocks(prompts, 1)
    return [replace(step, repeat=repeat) for repeat in range(repeats) for step in once]


def of_one_arm(steps: Sequence[Step], *, remembers: bool) -> Iterator[list[Step]]:
    """Group neighbouring runs of one arm. Where the speculative server remembers what it has read,
    no group has a prompt twice on that arm."""
    for arm, run in itertools.groupby(steps, key=lambda step: step.arm):
        group: list[Step] = []
        for step in run:
            seen = any(step.prompt == other.prompt for other in group)
            if seen and remembers and arm is Arm.SPECULATIVE:
                yield group
                group = []
            group.append(step)
        yield group
