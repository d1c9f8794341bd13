"""Which runs happen together, and in which order."""

from __future__ import annotations

import itertools

import pytest

from farm.domain.job import Arm
from worker.engines.pairing import Step, in_blocks, in_turns, of_one_arm

A, B = Arm.BASELINE, Arm.SPECULATIVE


def arms(steps: list[Step]) -> list[Arm]:
    return [arm for arm, _ in itertools.groupby(step.arm for step in steps)]


@pytest.mark.parametrize(("prompts", "repeats"), [(1, 1), (4, 1), (3, 4), (12, 2)])
def test_every_run_is_there_once_on_each_arm(prompts: int, repeats: int) -> None:
    wanted = {(arm, r, p) for arm in Arm for r in range(repeats) for p in range(prompts)}
    for order in (in_blocks, in_turns):
        steps = order(prompts, repeats)
        assert len(steps) == len(wanted)
        assert {(step.arm, step.repeat, step.prompt) for step in steps} == wanted


def test_in_turns_is_mirrored_within_each_repeat() -> None:
    assert arms(in_turns(4, 1)) == [A, B, A]
    assert arms(in_turns(4, 3)) == [A, B, A, B, A, B, A]
    assert arms(in_blocks(4, 3)) == [A, B, A]
    for repeat in range(3):
        own = [step for step in in_turns(4, 3) if step.repeat == repeat]
        assert [step.arm for step in own] == [A, A, B, B, B, B, A, A]


def test_groups_are_of_one_arm_and_keep_the_order() -> None:
    steps = in_turns(4, 2)
    groups = list(of_one_arm(steps, remembers=False))
    assert list(itertools.chain(*groups)) == steps
    assert [{step.arm for step in group} for group in groups] == [{A}, {B}, {A}, {B}, {A}]


def test_no_prompt_is_twice_in_a_group_where_the_server_remembers() -> None:
    """The baseline remembers nothing; its groups stay whole."""
    steps = in_blocks(3, 4)
    groups = list(of_one_arm(steps, remembers=True))
    assert list(itertools.chain(*groups)) == steps
    for group in groups:
        prompts = [step.prompt for step in group]
        if group[0].arm is B:
            assert len(prompts) == len(set(prompts))
    assert [len(group) for group in groups if group[0].arm is A] == [6, 6]
