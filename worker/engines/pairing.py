"""In which order a job's runs happen: the arms of a prompt near in time, and mirrored."""

from __future__ import annotations

from dataclasses import dataclass

from farm.domain.job import Arm

ARMS = (Arm.BASELINE, Arm.SPECULATIVE)


@dataclass(frozen=True)
class Step:
    """One run of one prompt on one arm; prompt is an index."""

    arm: Arm
    repeat: int
    prompt: int


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
