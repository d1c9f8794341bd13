"""How results read in words and figures: the same in the reports and on the dashboard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from farm.domain.decoding import Settings, Speculation, SpeculationKind
from farm.domain.engines import ENDPOINT
from farm.domain.measurement import Parity
from farm.science.paired import MIN_PAIRS, Interval
from farm.science.parity import Cause
from farm.science.recommendation import Verdict
from farm.services.recommend import CALIBRATION_NOTE, CurvePoint, Recommendation, Setup

NOT_MEASURED = "–"

HOW_TO_READ = (
    "Speedup is speculative decode speed over baseline decode speed on the same prompts, "
    "measured side by side; 1.00x is no change.",
    "The range beside it is a 95 % interval over prompts, Bonferroni over the K tried: picking "
    "the best K of a curve keeps the promised 95 %.",
    "A K is recommended where its whole interval lies above 1; speculation is off where "
    "no interval clears 1, since a gain that is not proven is not worth a second model in memory.",
    "With several requests at once the speeds are what one user sees, among its neighbours all the "
    "time, and the speedup compares those. All users: their number times the tokens of a request, "
    "over the time that one takes with its prompt.",
    f"Under {MIN_PAIRS} prompts there is no interval and no advice.",
    "Parity compares the outputs at temperature 0. Exact: the same tokens. Near-tie: they part "
    "where the target's two best tokens are so close that rounding decides. Mismatch: they part "
    "for another reason; such a configuration is never recommended.",
    "As a control the baseline's own text is scored in wide passes, as verifying does, without "
    "speculation. A mismatch by batch scoring alone is one that this reproduces: the machine's "
    "arithmetic. Any other is an error of speculation.",
)

LOSSY = "lossy"
LOSSY_NOTE = (
    "Lossy settings change what the target itself says, with and without speculation: a speedup "
    "here is over a baseline that has them too, not over the unmodified target."
)

SETTINGS = {
    "context_tokens": "context {} tokens",
    "threads": "threads {}",
    "gpu_layers": "{} GPU layers",
    "draft_gpu_layers": "{} GPU layers of the draft",
    "cache_type_k": "K cache {}",
    "cache_type_v": "V cache {}",
    "flash_attention": "flash attention {}",
    "batch_threads": "batch threads {}",
    "numa": "NUMA {}",
    "draft_cache_type_k": "K cache of the draft {}",
    "draft_cache_type_v": "V cache of the draft {}",
    "draft_device": "draft on {}",
    "experts_used": "{} experts used",
    "depth_tokens": "depth {} tokens",
    "concurrent_requests": "{} concurrent requests",
    "chat_template": "chat template {} (code completion plain)",
}
_ALL_LAYERS = -1


def plain(text: str) -> str:
    """Return text on one line without control characters; names come from files of any origin."""
    return "".join(char if char.isprintable() else " " for char in text).strip()


def model_label(name: str) -> str:
    """Return a model file's name without its ending."""
    return plain(name).removesuffix(".gguf")


def pair_label(setup: Setup) -> str:
    """Name what was measured: target and draft, or the draftless kind, and how many requests at
    once; calibration says so."""
    proposer = f" + {model_label(setup.draft)}" if setup.draft else f", {setup.kind}"
    at_once = setup.settings.concurrent_requests
    load = f", {at_once} at once" if at_once > 1 else ""
    return f"{model_label(setup.target)}{proposer}{load}{' (calibration)' * setup.is_calibration}"


def temperature_label(temperature: float) -> str:
    """Return a temperature as people write it: 0, 0.7."""
    return f"{temperature:g}"


def changed_settings(settings: Settings) -> list[str]:
    """Name every setting that is not llama.cpp's own or the farm's default, the lossy ones so."""
    defaults = asdict(Settings())
    return [
        _setting(settings, name)
        for name, value in asdict(settings).items()
        if value not in (None, defaults[name])
    ]


def settings_text(settings: Settings, generate_tokens: int) -> str:
    """Return the settings that shaped the measurement; those left to the machine are not named."""
    context = _setting(settings, "context_tokens")
    rest = [text for text in changed_settings(settings) if text != context]
    return ", ".join([context, f"{generate_tokens} tokens generated", *rest])


def measured_with(setup: Setup) -> str:
    """Return the settings of a measurement; servers that ran already have their own."""
    if setup.engine == ENDPOINT:
        return f"the servers' own settings, {setup.generate_tokens} tokens generated"
    return settings_text(setup.settings, setup.generate_tokens)


def _setting(settings: Settings, name: str) -> str:
    value = getattr(settings, name)
    is_all = name.endswith("gpu_layers") and value == _ALL_LAYERS
    text = SETTINGS[name].format("all" if is_all else plain(str(value)))
    return f"{text} ({LOSSY})" if name in settings.lossy else text


def configuration(speculation: Speculation, temperature: float) -> str:
    """Name one configuration: K, and only what else differs from the plain case."""
    if speculation.kind is SpeculationKind.AS_SERVED:
        return "as served"
    parts = [f"K = {speculation.n_max}"]
    if speculation.p_min:
        parts.append(f"p_min {speculation.p_min:g}")
    if speculation.n_min:
        parts.append(f"n_min {speculation.n_min}")
    if speculation.what_if is not None:
        parts.append(f"what if {speculation.what_if}")
    if temperature > 0 and speculation.kind is SpeculationKind.DRAFT_SIMPLE:
        parts.append(f"accept {speculation.accept.value}")
    return ", ".join(parts)


def has_k(setup: Setup) -> bool:
    """Say whether K was chosen for the measurement; a server that ran already has its own."""
    return setup.kind != SpeculationKind.AS_SERVED


def series_label(speculation: Speculation, temperature: float) -> str:
    """Name what a K curve holds fixed while K moves."""
    return configuration(speculation, temperature).partition(", ")[2] or "p_min 0"


def verdict_text(recommendation: Recommendation) -> str:
    """Say what to do: a configuration, "speculation off" or "too few prompts"."""
    if recommendation.verdict is Verdict.UNDECIDED:
        return "too few prompts"
    if recommendation.verdict is Verdict.OFF or recommendation.best is None:
        return "speculation off"
    return configuration(recommendation.best.speculation, recommendation.setup.temperature)


def labelled_verdict(recommendation: Recommendation) -> str:
    """Return the verdict; a calibration pair's is never shown without its label."""
    label = " (calibration)" if recommendation.setup.is_calibration else ""
    return f"{verdict_text(recommendation)}{label}"


def as_good_text(recommendation: Recommendation) -> str:
    """Name the configurations that cannot be told from the best one; "" where there is none."""
    temperature = recommendation.setup.temperature
    return "; ".join(
        configuration(point.speculation, temperature) for point in recommendation.as_good
    )


def speedup_text(interval: Interval | None) -> str:
    """Return the estimate, "2.00x"."""
    return NOT_MEASURED if interval is None else f"{interval.estimate:.2f}x"


def interval_text(interval: Interval | None) -> str:
    """Return the bounds, "1.88 to 2.12"."""
    return NOT_MEASURED if interval is None else f"{interval.low:.2f} to {interval.high:.2f}"


def percent_text(share: float | None) -> str:
    """Return a share of 1 in percent, "83.1 %"."""
    return NOT_MEASURED if share is None else f"{100 * share:.1f} %"


def number_text(value: float | None, digits: int = 1) -> str:
    """Return a number with fixed decimals."""
    return NOT_MEASURED if value is None else f"{value:.{digits}f}"


def speed_texts(point: CurvePoint) -> tuple[str, ...]:
    """Return speedup, interval, acceptance, tokens per round, and both arms' tok/s."""
    return (
        speedup_text(point.speedup),
        interval_text(point.speedup),
        percent_text(point.acceptance_rate),
        number_text(point.tokens_per_round, 2),
        number_text(point.baseline_tok_s),
        number_text(point.speculative_tok_s),
    )


def outputs_text(points: Sequence[CurvePoint]) -> str:
    """Return what is known of the outputs of some configurations: parity, with what the control
    explains, or above temperature 0 the check against a calibration pair's law."""
    checks = [arm for point in points for check in point.law_checks for arm in check.values()]
    if checks and all(arm["p_value"] is not None for arm in checks):
        return f"law held, {sum(arm['tokens'] for arm in checks):,} tokens"
    text = parity_text(total_parity(points))
    causes = mismatch_causes(points)
    if causes.keys() <= {Cause.UNKNOWN}:
        return text
    return f"{text} ({causes[Cause.ARITHMETIC] or 'none'} by batch scoring alone)"


def mismatch_causes(points: Sequence[CurvePoint]) -> Counter[str]:
    """Return the causes of hard mismatches over several configurations."""
    total: Counter[str] = Counter()
    for point in points:
        total.update(point.causes.get(Parity.MISMATCH, {}))
    return total


def lossy_text(recommendation: Recommendation) -> str | None:
    """Say what lossy settings did to the target's own text, None where there are none."""
    settings = recommendation.setup.settings
    if not settings.lossy:
        return None
    names = ", ".join(SETTINGS[name].format(getattr(settings, name)) for name in settings.lossy)
    parity = recommendation.unmodified_parity
    prompts = sum(parity.values())
    if not prompts:
        return f"lossy ({names}): not compared with the unmodified target"
    differing = prompts - parity.get(Parity.EXACT, 0)
    return (
        f"lossy ({names}): text differs from the unmodified target's on "
        f"{differing} of {prompts} prompts"
    )


def parity_text(parity: dict[str, int]) -> str:
    """Return the findings over all compared outputs: "exact 22/24, near-tie 2"."""
    if Parity.NOT_VALID in parity:
        return "not valid"
    compared = sum(count for name, count in parity.items() if name != Parity.NOT_COMPARED)
    if not compared:
        return "not compared" if parity else NOT_MEASURED
    parts = [f"exact {parity.get(Parity.EXACT, 0)}/{compared}"]
    parts += [
        f"{name.value} {parity[name]}"
        for name in (Parity.NEAR_TIE, Parity.MISMATCH)
        if parity.get(name)
    ]
    return ", ".join(parts)


def headline_outputs(recommendation: Recommendation) -> str:
    """Return `outputs_text` of the best configuration, or of all where none was usable."""
    best = recommendation.best
    return outputs_text(recommendation.curve if best is None else (best,))


def total_parity(points: Sequence[CurvePoint]) -> dict[str, int]:
    """Return the parity counts over several configurations."""
    total: Counter[str] = Counter()
    for point in points:
        total.update(point.parity)
    return dict(total)


def advice_sentence(recommendations: Sequence[Recommendation]) -> str:
    """Say in one paragraph for which kinds of content speculation pays, and with which K."""
    verdicts: dict[str, list[str]] = {}
    for recommendation in recommendations:
        text = verdict_text(recommendation)
        verdicts.setdefault(text, []).append(recommendation.setup.category)
    details = "; ".join(f"{text}: {', '.join(names)}" for text, names in verdicts.items())
    details = f"{details[:1].upper()}{details[1:]}."
    if any(item.setup.settings.lossy for item in recommendations):
        details = f"{details} {LOSSY_NOTE}"
    if all(item.setup.is_calibration for item in recommendations):
        return f"Calibration, not advice. {details}"
    paying = sum(item.verdict is Verdict.ON for item in recommendations)
    kinds = "kind" if len(recommendations) == 1 else "kinds"
    return f"Speculation pays for {paying} of {len(recommendations)} {kinds} of content. {details}"


def calibration_sentence(recommendations: Sequence[Recommendation]) -> str | None:
    """Return the calibration label, None where no result comes from a calibration pair."""
    count = sum(item.setup.is_calibration for item in recommendations)
    if not count:
        return None
    which = "All results here" if count == len(recommendations) else "Results marked (calibration)"
    return f"{which} come from a {CALIBRATION_NOTE}."
