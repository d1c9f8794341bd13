from __future__ import annotations

import pytest

from tests.bench.timing import Figure, interleave, paired_ratio


def test_arms_take_turns_in_mirrored_order():
    order: list[str] = []

    def arm(name: str) -> int:
        order.append(name)
        return len(order)

    readings = interleave({"a": lambda: arm("a"), "b": lambda: arm("b")}, 3)

    assert order == ["a", "b", "b", "a", "a", "b"]
    assert readings == {"a": [1, 4, 5], "b": [2, 3, 6]}


def test_a_ratio_is_the_median_of_the_pairs_and_not_of_the_arms():
    figure = paired_ratio("x", [10.0, 20.0, 90.0], [10.0, 40.0, 30.0], "tok/s", 1.0)

    assert figure.value == 1.0
    assert figure.detail == "20 against 30 tok/s; 3 pairs, 0.500 to 3.000"
    assert paired_ratio("x", [3.0, 8.0], [1.0, 2.0], "", None).value == 3.5


@pytest.mark.parametrize(
    ("at_least", "at_most", "met", "bar"),
    [
        (1.0, None, True, ">= 1"),
        (1.1, None, False, ">= 1.1"),
        (None, 1.0, True, "<= 1"),
        (None, 0.99, False, "<= 0.99"),
        (None, None, None, ""),
    ],
)
def test_a_figure_is_judged_by_its_bar(
    at_least: float | None, at_most: float | None, met: bool | None, bar: str
):
    figure = Figure("x", 1.0, "x", "", at_least, at_most)

    assert figure.is_met is met
    assert figure.bar == bar
