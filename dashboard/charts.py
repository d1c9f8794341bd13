"""K curves as Altair charts: pure functions, results in, chart out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from farm.report.axes import Axes, series_shift
from farm.report.wording import (
    configuration,
    interval_text,
    number_text,
    outputs_text,
    percent_text,
    series_label,
    speedup_text,
    verdict_text,
)
from farm.science.recommendation import Verdict
from farm.services.recommend import CurvePoint, Recommendation

# Okabe and Ito's palette, which stays apart under every common colour blindness; the hues chosen
# also stand out on white and on near-black.
SERIES_COLOURS = ("#3a8fd0", "#e08214", "#12a06e", "#cc79a7", "#b59a00", "#56b4e9")
VERDICT_COLOURS = {Verdict.ON: "#3a8fd0", Verdict.OFF: "#e08214", Verdict.UNDECIDED: "#8a8f98"}
NEUTRAL = "#8a8f98"
# Whole charts, with titles and axes.
SPEEDUP_HEIGHT_PX = 320
ACCEPTANCE_HEIGHT_PX = 190
# Wide enough for either chart's labels, so that the K axes of both stand in line.
Y_AXIS_PX = 38
CALIBRATION_SUBTITLE = "calibration pair, not a language model"


def speedup_chart(recommendation: Recommendation, axes: Axes) -> alt.LayerChart:
    """Draw speedup over K with its intervals, a rule at 1.0x and the best K filled in."""
    data = alt.Data(values=curve_values(recommendation, axes))
    base = alt.Chart(data, height=SPEEDUP_HEIGHT_PX, title=_title(recommendation))
    x = _k_axis(recommendation.curve, axes, title=None)
    y = alt.Y(
        "speedup:Q",
        title="speedup",
        scale=alt.Scale(domain=[axes.speedup_low, axes.speedup_high], nice=False, zero=False),
        axis=alt.Axis(
            values=axes.speedup_ticks,
            labelExpr="datum.value + 'x'",
            labelOverlap=False,
            minExtent=Y_AXIS_PX,
            maxExtent=Y_AXIS_PX,
        ),
    )
    colour = _series_colour(recommendation)
    measured = base.transform_filter("datum.speedup != null").encode(x=x, color=colour)
    unity = (
        alt.Chart(alt.Data(values=[{"speedup": 1.0}]))
        .mark_rule(color=NEUTRAL, strokeDash=[5, 4], strokeWidth=1.5)
        .encode(y=y)
    )
    return alt.layer(
        unity,
        measured.mark_line(strokeWidth=1.5, opacity=0.7).encode(y=y),
        measured.mark_rule(strokeWidth=1.5).encode(y=alt.Y("low:Q"), y2=alt.Y2("high:Q")),
        measured.mark_tick(orient="horizontal", size=8, thickness=1.5).encode(y=alt.Y("low_cap:Q")),
        measured.mark_tick(orient="horizontal", size=8, thickness=1.5).encode(
            y=alt.Y("high_cap:Q")
        ),
        measured.mark_point(filled=True, opacity=1).encode(
            y=y,
            size=alt.Size(
                "is_best:N", legend=None, scale=alt.Scale(domain=[False, True], range=[45, 150])
            ),
            tooltip=_tooltip(),
        ),
    )


def acceptance_chart(recommendation: Recommendation, axes: Axes) -> alt.LayerChart:
    """Draw the share of drafted tokens that the target accepted, over K."""
    data = alt.Data(values=curve_values(recommendation, axes))
    base = (
        alt.Chart(data, height=ACCEPTANCE_HEIGHT_PX)
        .transform_filter("datum.acceptance != null")
        .encode(
            x=_k_axis(recommendation.curve, axes, title="K (tokens drafted per round)"),
            y=alt.Y(
                "acceptance:Q",
                title="acceptance",
                scale=alt.Scale(domain=[0, 1]),
                axis=alt.Axis(
                    format=".0%",
                    values=[0, 0.5, 1],
                    labelOverlap=False,
                    minExtent=Y_AXIS_PX,
                    maxExtent=Y_AXIS_PX,
                ),
            ),
            color=_series_colour(recommendation),
        )
    )
    return alt.layer(
        base.mark_line(strokeWidth=1.5, opacity=0.7),
        base.mark_point(filled=True, size=45, opacity=1).encode(tooltip=_tooltip()),
    )


def curve_values(recommendation: Recommendation, axes: Axes) -> list[dict[str, Any]]:
    """Return the charts' rows, one per configuration; unmeasured figures are null."""
    temperature = recommendation.setup.temperature
    names = _series_names(recommendation)
    rows = []
    for point in recommendation.curve:
        name = series_label(point.speculation, temperature)
        shift = series_shift(names.index(name), len(names))
        speedup = point.speedup
        low, high = axes.clipped(speedup) if speedup else (None, None)
        rows.append(
            {
                "k": point.speculation.n_max,
                "k_place": point.speculation.n_max * shift,
                "series": name,
                "speedup": speedup and speedup.estimate,
                "low": low,
                "high": high,
                "low_cap": low if speedup and low == speedup.low else None,
                "high_cap": high if speedup and high == speedup.high else None,
                "acceptance": point.acceptance_rate,
                "is_best": point == recommendation.best,
                "configuration": configuration(point.speculation, temperature),
                "speedup_text": f"{speedup_text(speedup)} ({interval_text(speedup)})",
                "acceptance_text": percent_text(point.acceptance_rate),
                "rate_text": f"{number_text(point.baseline_tok_s)} → "
                f"{number_text(point.speculative_tok_s)}",
                "parity_text": outputs_text((point,)),
                "prompts": point.prompts,
            }
        )
    return rows


def _title(recommendation: Recommendation) -> alt.TitleParams:
    text = verdict_text(recommendation)
    if recommendation.verdict is Verdict.ON and recommendation.best is not None:
        text += f": {speedup_text(recommendation.best.speedup)}"
    subtitle = [text]
    if recommendation.setup.is_calibration:
        subtitle.append(CALIBRATION_SUBTITLE)
    return alt.TitleParams(
        recommendation.setup.category,
        subtitle=subtitle,
        fontSize=15,
        subtitleFontSize=13,
        subtitleColor=VERDICT_COLOURS[recommendation.verdict],
        anchor="start",
        offset=12,
    )


def _series_names(recommendation: Recommendation) -> list[str]:
    temperature = recommendation.setup.temperature
    return list(
        dict.fromkeys(
            series_label(point.speculation, temperature) for point in recommendation.curve
        )
    )


def _series_colour(recommendation: Recommendation) -> alt.Color:
    names = _series_names(recommendation)
    colours = [SERIES_COLOURS[index % len(SERIES_COLOURS)] for index in range(len(names))]
    legend = alt.Legend(title=None, orient="bottom") if len(names) > 1 else None
    return alt.Color("series:N", scale=alt.Scale(domain=names, range=colours), legend=legend)


def _k_axis(points: Sequence[CurvePoint], axes: Axes, title: str | None) -> alt.X:
    ks = sorted({point.speculation.n_max for point in points})
    return alt.X(
        "k_place:Q",
        title=title,
        scale=alt.Scale(type="log", base=2, domain=[axes.k_low, axes.k_high], nice=False),
        axis=alt.Axis(values=ks, format="d", grid=False, labelOverlap="greedy"),
    )


def _tooltip() -> list[alt.Tooltip]:
    return [
        alt.Tooltip("configuration:N", title="configuration"),
        alt.Tooltip("speedup_text:N", title="speedup (95 %)"),
        alt.Tooltip("acceptance_text:N", title="acceptance"),
        alt.Tooltip("rate_text:N", title="tok/s"),
        alt.Tooltip("parity_text:N", title="parity"),
        alt.Tooltip("prompts:Q", title="prompts"),
    ]
