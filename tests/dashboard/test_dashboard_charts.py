from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dashboard.charts import (
    CALIBRATION_SUBTITLE,
    VERDICT_COLOURS,
    acceptance_chart,
    curve_values,
    speedup_chart,
)
from farm.report.axes import shared_axes
from farm.science.recommendation import Verdict
from farm.services.recommend import Recommendation


def marks(spec: dict[str, Any]) -> list[str]:
    return [layer["mark"]["type"] for layer in spec["layer"]]


@pytest.fixture
def chosen(advice: list[Recommendation]) -> Recommendation:
    return next(item for item in advice if item.verdict is Verdict.ON)


def test_rows_hold_the_curve_s_own_figures(chosen: Recommendation) -> None:
    rows = curve_values(chosen, shared_axes(chosen.curve))
    for row, point in zip(rows, chosen.curve, strict=True):
        assert point.speedup is not None
        assert (row["k"], row["speedup"]) == (point.speculation.n_max, point.speedup.estimate)
        assert (row["low"], row["high"]) == (point.speedup.low, point.speedup.high)
        assert row["acceptance"] == point.acceptance_rate
        assert row["k_place"] == row["k"]
    assert [row["k"] for row in rows if row["is_best"]] == [chosen.best.speculation.n_max]  # type: ignore[union-attr]


def test_speedup_chart_draws_unity_intervals_and_points(chosen: Recommendation) -> None:
    axes = shared_axes(chosen.curve)
    spec = speedup_chart(chosen, axes).to_dict()
    assert marks(spec) == ["rule", "line", "rule", "tick", "tick", "point"]
    assert spec["layer"][0]["data"]["values"] == [{"speedup": 1.0}]
    line = spec["layer"][1]["encoding"]
    assert line["x"]["scale"]["type"] == "log"
    assert line["x"]["axis"]["values"] == [point.speculation.n_max for point in chosen.curve]
    assert line["y"]["scale"]["domain"] == [axes.speedup_low, axes.speedup_high]
    assert spec["layer"][1]["title"]["subtitle"][0].startswith("K = ")


def test_acceptance_chart_spans_0_to_100_percent(chosen: Recommendation) -> None:
    spec = acceptance_chart(chosen, shared_axes(chosen.curve)).to_dict()
    assert spec["layer"][0]["encoding"]["y"]["scale"]["domain"] == [0, 1]
    assert "K" in spec["layer"][0]["encoding"]["x"]["title"]


def test_verdict_and_calibration_stand_in_the_title(advice: list[Recommendation]) -> None:
    off = next(item for item in advice if item.verdict is Verdict.OFF)
    title = speedup_chart(off, shared_axes(off.curve)).to_dict()["layer"][1]["title"]
    assert title["subtitle"] == ["speculation off"]
    assert title["subtitleColor"] == VERDICT_COLOURS[Verdict.OFF]
    calibration = next(item for item in advice if item.setup.is_calibration)
    title = speedup_chart(calibration, shared_axes(calibration.curve)).to_dict()["layer"][1][
        "title"
    ]
    assert CALIBRATION_SUBTITLE in title["subtitle"]


def test_series_with_another_p_min_get_a_line_and_a_legend(chosen: Recommendation) -> None:
    careful = tuple(
        replace(point, speculation=replace(point.speculation, p_min=0.75)) for point in chosen.curve
    )
    both = replace(chosen, curve=chosen.curve + careful)
    axes = shared_axes(both.curve)
    rows = curve_values(both, axes)
    assert {row["series"] for row in rows} == {"p_min 0", "p_min 0.75"}
    places = {row["k_place"] for row in rows if row["k"] == 4}
    assert len(places) == 2
    colour = speedup_chart(both, axes).to_dict()["layer"][1]["encoding"]["color"]
    assert colour["scale"]["domain"] == ["p_min 0", "p_min 0.75"]
    assert colour["legend"] is not None
    assert len(set(colour["scale"]["range"])) == 2


def test_unmeasured_points_are_left_out_not_drawn_at_zero(chosen: Recommendation) -> None:
    first = replace(chosen.curve[0], speedup=None, acceptance_rate=None)
    partial = replace(chosen, curve=(first, *chosen.curve[1:]))
    row = curve_values(partial, shared_axes(partial.curve))[0]
    assert row["speedup"] is None
    assert row["low"] is None
    assert row["acceptance"] is None
    spec = speedup_chart(partial, shared_axes(partial.curve)).to_dict()
    assert {"filter": "datum.speedup != null"} in spec["layer"][1]["transform"]
