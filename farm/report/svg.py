"""A K curve as inline SVG: speedup with intervals above, acceptance below. Text is escaped."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from farm.report.axes import Axes, series_shift
from farm.report.wording import (
    configuration,
    interval_text,
    percent_text,
    series_label,
    speedup_text,
)
from farm.services.recommend import CurvePoint

WIDTH, HEIGHT = 260, 286
LEFT, RIGHT = 40, 8
SPEEDUP_TOP, SPEEDUP_BOTTOM = 14, 166
ACCEPT_TOP, ACCEPT_BOTTOM = 190, 246
LEGEND_LINE = 15

Scale = Callable[[float], float]


def k_curve(
    points: Sequence[CurvePoint],
    *,
    temperature: float,
    axes: Axes,
    best: CurvePoint | None,
    label: str,
) -> str:
    """Return one `<svg>`; series with another p_min or accept rule get a line each.

    Colours come from the page's CSS classes s0, s1, ..., so that the chart follows its theme.
    """
    x = _log_scale(axes.k_low, axes.k_high, LEFT, WIDTH - RIGHT)
    y = _linear_scale(axes.speedup_low, axes.speedup_high, SPEEDUP_BOTTOM, SPEEDUP_TOP)
    share = _linear_scale(0, 1, ACCEPT_BOTTOM, ACCEPT_TOP)
    series: dict[str, list[CurvePoint]] = {}
    for point in points:
        series.setdefault(series_label(point.speculation, temperature), []).append(point)
    parts = [_axes(sorted({point.speculation.n_max for point in points}), axes, x, y, share)]
    for index, members in enumerate(series.values()):
        shift = series_shift(index, len(series))
        parts.append(_series(members, index, shift, axes, x, y, share, temperature, best))
    if len(series) > 1:
        parts += [_legend_entry(index, name) for index, name in enumerate(series)]
    height = HEIGHT + LEGEND_LINE * (len(series) if len(series) > 1 else 0)
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">'
        + "".join(parts)
        + "</svg>"
    )


def _axes(ks: Sequence[int], axes: Axes, x: Scale, y: Scale, share: Scale) -> str:
    right = WIDTH - RIGHT
    parts = []
    for tick in axes.speedup_ticks:
        parts.append(_line(LEFT, y(tick), right, y(tick), "grid"))
        parts.append(_text(LEFT - 5, y(tick) + 3.5, f"{tick:g}x", "end"))
    for tick in (0.0, 0.5, 1.0):
        parts.append(_line(LEFT, share(tick), right, share(tick), "grid"))
        parts.append(_text(LEFT - 5, share(tick) + 3.5, f"{100 * tick:.0f} %", "end"))
    last = -math.inf
    for k in ks:
        if x(k) - last >= 16:
            parts.append(_text(x(k), ACCEPT_BOTTOM + 14, str(k), "middle"))
            last = x(k)
    parts.append(_line(LEFT, y(1), right, y(1), "one"))
    parts.append(_text(LEFT, SPEEDUP_TOP - 5, "speedup", "start", "label"))
    parts.append(_text(LEFT, ACCEPT_TOP - 6, "acceptance", "start", "label"))
    parts.append(_text(right, ACCEPT_BOTTOM + 29, "K, tokens drafted per round", "end", "label"))
    return "".join(parts)


def _series(
    points: Sequence[CurvePoint],
    index: int,
    shift: float,
    axes: Axes,
    x: Scale,
    y: Scale,
    share: Scale,
    temperature: float,
    best: CurvePoint | None,
) -> str:
    measured = [
        (x(point.speculation.n_max * shift), point.speedup, point)
        for point in points
        if point.speedup is not None
    ]
    accepted = [
        (x(point.speculation.n_max * shift), share(point.acceptance_rate))
        for point in points
        if point.acceptance_rate is not None
    ]
    parts = [
        _path([(place, y(speedup.estimate)) for place, speedup, _ in measured]),
        _path(accepted),
    ]
    parts += [f'<circle cx="{place:.1f}" cy="{height:.1f}" r="2.4"/>' for place, height in accepted]
    for place, speedup, point in measured:
        low, high = axes.clipped(speedup)
        parts.append(_line(place, y(low), place, y(high), "bar"))
        for bound in {low, high} & {speedup.low, speedup.high}:
            parts.append(_line(place - 3, y(bound), place + 3, y(bound), "bar"))
        title = escape(
            f"{configuration(point.speculation, temperature)}: {speedup_text(speedup)} "
            f"({interval_text(speedup)}), acceptance {percent_text(point.acceptance_rate)}"
        )
        kind = "best" if point == best else "dot"
        parts.append(
            f'<circle class="{kind}" cx="{place:.1f}" cy="{y(speedup.estimate):.1f}" '
            f'r="{5 if point == best else 3.2}"><title>{title}</title></circle>'
        )
    return f'<g class="s{index % 6}">{"".join(parts)}</g>'


def _legend_entry(index: int, name: str) -> str:
    y = HEIGHT + index * LEGEND_LINE
    swatch = _line(LEFT, y, LEFT + 14, y, "bar")
    return f'<g class="s{index % 6}">{swatch}</g>' + _text(LEFT + 20, y + 3.5, name, "start")


def _linear_scale(low: float, high: float, start: float, end: float) -> Scale:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _log_scale(low: float, high: float, start: float, end: float) -> Scale:
    linear = _linear_scale(math.log(low), math.log(high), start, end)
    return lambda value: linear(math.log(value))


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _path(places: Sequence[tuple[float, float]]) -> str:
    if len(places) < 2:
        return ""
    return f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )
