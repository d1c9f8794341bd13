"""A pair in memory, as many tests use it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.bench.llama import Context, Model


@dataclass
class LoadedPair:
    """A target and a draft with a context each."""

    target_model: Model
    draft_model: Model
    target: Context
    draft: Context

    @classmethod
    def load(cls, paths: tuple[Path, Path], settings: dict[str, Any]) -> LoadedPair:
        """Load both files without a GPU."""
        target, draft = (Model(str(path), 0) for path in paths)
        return cls(target, draft, target.context(settings), draft.context(settings))
