from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from farm.report.axes import shared_axes
from farm.report.grouping import by_subject
from farm.report.svg import SPEEDUP_BOTTOM, SPEEDUP_TOP, k_curve
from farm.report.wording import configuration, parity_text, series_label
from farm.science.paired import Interval
from farm.services.recommend import CurvePoint, Recommendation

Make = Callable[..., Recommendation]


def at_k(point: CurvePoint, k: int, speedup: Interval | None) -> CurvePoint:
    return replace(point, speculation=replace(point.speculation, n_max=k), speedup=speedup)


@pytest.fixture
def curve(make: Make) -> tuple[CurvePoint, ...]:
    (point,) = make().curve
    return (
        at_k(point, 4, Interval(1.8, 1.7, 1.9, 24)),
        point,
        at_k(point, 16, Interval(0.9, 0.8, 1.0, 24)),
    )


def drawn(points: tuple[CurvePoint, ...], best: CurvePoint | None) -> str:
    return k_curve(points, temperature=0.0, axes=shared_axes(points), best=best, label="<curve>")


def test_axes_hold_every_interval_and_1(curve: tuple[CurvePoint, ...]) -> None:
    axes = shared_axes(curve)
    assert axes.speedup_low < 0.8
    assert axes.speedup_high > 2.12
    assert axes.k_low < 4
    assert axes.k_high > 16
    assert 1.0 in axes.speedup_ticks
    assert all(axes.speedup_low <= tick <= axes.speedup_high for tick in axes.speedup_ticks)


def test_an_endless_interval_does_not_flatten_the_curve(curve: tuple[CurvePoint, ...]) -> None:
    wide = at_k(curve[1], 32, Interval(2.0, 0.01, 400.0, 3))
    axes = shared_axes((*curve, wide))
    assert axes.speedup_high < 4
    assert wide.speedup is not None
    assert axes.clipped(wide.speedup) == (0.01, axes.speedup_high)


def test_heights_follow_the_speedups(curve: tuple[CurvePoint, ...]) -> None:
    svg = drawn(curve, curve[1])
    circles = re.findall(r'<circle class="(\w+)" cx="([\d.]+)" cy="([\d.]+)"', svg)
    assert [kind for kind, _, _ in circles] == ["dot", "best", "dot"]
    places = [float(x) for _, x, _ in circles]
    heights = [float(y) for _, _, y in circles]
    assert places == sorted(places)
    assert heights[1] < heights[0] < heights[2]
    assert all(SPEEDUP_TOP <= height <= SPEEDUP_BOTTOM for height in heights)
    assert places[1] - places[0] == pytest.approx(places[2] - places[1], abs=0.11)


def test_labels_are_escaped_and_titles_tell_the_figures(curve: tuple[CurvePoint, ...]) -> None:
    svg = drawn(curve, curve[1])
    assert 'aria-label="&lt;curve&gt;"' in svg
    assert "<title>K = 8: 2.00x (1.88 to 2.12), acceptance 83.1 %</title>" in svg


def test_a_single_point_and_no_interval_still_draw(curve: tuple[CurvePoint, ...]) -> None:
    assert "<circle" in drawn(curve[:1], None)
    unmeasured = at_k(curve[0], 4, None)
    svg = drawn((replace(unmeasured, acceptance_rate=None),), None)
    assert "<circle" not in svg


def test_series_have_a_legend_and_colours_of_their_own(curve: tuple[CurvePoint, ...]) -> None:
    careful = tuple(
        replace(point, speculation=replace(point.speculation, p_min=0.75)) for point in curve
    )
    svg = drawn(curve + careful, None)
    assert 'class="s0"' in svg
    assert 'class="s1"' in svg
    assert ">p_min 0.75</text>" in svg
    assert "p_min" not in re.sub(r"<title>.*?</title>", "", drawn(curve, None))


def test_subjects_with_equal_names_are_told_apart(make: Make) -> None:
    subjects = by_subject(
        [
            make(category="chat"),
            make(category="tool-calls"),
            make(build="llama-cpp-python==0.4.0"),
            make(build="llama-cpp-python==0.4.0", build_digest=None),
            make(generate_tokens=64),
        ]
    )
    labels = [subject.label for subject in subjects]
    assert len(set(labels)) == len(labels) == 4
    assert len(subjects[0].recommendations) == 2
    assert "0.4.0" in labels[1]


def test_a_lone_subject_is_labelled_briefly(make: Make) -> None:
    (subject,) = by_subject([make()])
    assert subject.label == "box · target + draft · temperature 0"


def test_configurations_name_only_what_differs(make: Make) -> None:
    plain, careful = make().curve[0].speculation, make(p_min=0.75).curve[0].speculation
    assert configuration(plain, 0.0) == "K = 8"
    assert configuration(careful, 0.0) == "K = 8, p_min 0.75"
    assert configuration(plain, 0.7) == "K = 8, accept exact"
    assert series_label(plain, 0.0) == "p_min 0"


@pytest.mark.parametrize(
    ("parity", "text"),
    [
        ({"exact": 24}, "exact 24/24"),
        ({"exact": 22, "near-tie": 2}, "exact 22/24, near-tie 2"),
        ({"mismatch": 3}, "exact 0/3, mismatch 3"),
        ({"not-compared": 6}, "not compared"),
        ({}, "–"),
    ],
)
def test_parity_reads_as_counts(parity: dict[str, int], text: str) -> None:
    assert parity_text(parity) == text
