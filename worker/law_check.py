"""Above temperature 0 on a calibration pair: do both arms draw from the law that is known?"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from farm.domain.job import Arm
from farm.domain.measurement import Sample
from farm.errors import BenchmarkError
from farm.gguf.calibration import HOTTEST_EXACT, Law
from farm.science.law import ALARM, law_p_value
from worker.engines.contract import PreparedPrompt


class LawCheck:
    """The tokens of a job's runs next to the law of the token before each.

    A token's cell is its rank among the candidates of its state, and one more for all others.
    Nothing is checked where no law is known, nor at temperature 0, nor where it is too hot for the
    law to be exact.
    """

    def __init__(self, law: Law | None, temperature: float, prompts: list[PreparedPrompt]) -> None:
        self._law = law if 0 < temperature <= HOTTEST_EXACT else None
        self._temperature = temperature
        self._texts = {prompt.digest: prompt.text for prompt in prompts}
        self._states: dict[Arm, list[int]] = {arm: [] for arm in Arm}
        self._cells: dict[Arm, list[int]] = {arm: [] for arm in Arm}

    def add(self, sample: Sample) -> None:
        """Take a run's tokens into account."""
        if (law := self._law) is None:
            return
        start = law.last_state(self._texts[sample.prompt_digest])
        others = law.successors.shape[1]
        walk = [start, *map(law.state, sample.output_ids)]
        for state, following in pairwise(walk):
            ranks = np.flatnonzero(law.successors[state] == following)
            self._states[sample.arm].append(state)
            self._cells[sample.arm].append(int(ranks[0]) if len(ranks) else others)

    def result(self) -> dict[str, Any] | None:
        """Return what an attempt's `checks` hold of it, None where nothing was checked."""
        if (law := self._law) is None:
            return None
        by_state = np.zeros((law.n_states, law.successors.shape[1] + 1))
        by_state[:, :-1] = law.target_by_rank(self._temperature)
        return {
            "law": {
                arm.value: {
                    "tokens": len(self._cells[arm]),
                    "p_value": law_p_value(self._cells[arm], by_state[self._states[arm]]),
                }
                for arm in Arm
            }
        }


def require_law(checks: dict[str, Any] | None) -> None:
    """Raise BenchmarkError "wrong-law" where an arm's tokens are not the law's."""
    for arm, found in (checks or {}).get("law", {}).items():
        if found["p_value"] is not None and found["p_value"] < ALARM:
            raise BenchmarkError(
                "wrong-law",
                f"The {arm} arm's {found['tokens']} tokens do not follow the calibration pair's "
                f"law (p = {found['p_value']:.1g}), so this build samples wrongly above "
                "temperature 0; measure with another build or engine.",
            )
