"""Calibration pairs: two real GGUF files whose acceptance is known before anything runs.

They are not language models. llama.cpp loads and decodes them at the true cost of their shape,
and what the target says next, and how often the draft guesses it, is a table (see
`calibration_law`). So a farm can be checked against known numbers, and a machine's cost curve
learnt before a real pair is downloaded.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from farm.domain.decoding import AcceptRule
from farm.domain.prompt import Category
from farm.errors import ResourceError, UserError
from farm.gguf.calibration_acceptance import ExpectedAcceptance, RoundCounts
from farm.gguf.calibration_law import HOTTEST_EXACT, METADATA_LAW, METADATA_PREFIX, Law
from farm.gguf.calibration_shapes import (
    QUANTISATIONS,
    SHAPES,
    ModelShape,
    Shape,
    shape_named,
    tensors,
)
from farm.gguf.calibration_tables import RESEMBLING_AGREEMENT
from farm.gguf.calibration_writer import write_model
from farm.gguf.header import Header, read_header

__all__ = [
    "HOTTEST_EXACT",
    "QUANTISATIONS",
    "RESEMBLING_AGREEMENT",
    "SHAPES",
    "ExpectedAcceptance",
    "Law",
    "ModelShape",
    "RoundCounts",
    "Shape",
    "calibration_prompt",
    "is_calibration",
    "law_of",
    "make_pair",
    "pair_bytes",
    "start_state",
]

FORMAT = 1
"""Raised when equal parameters give other files, so that old ones are not taken for new."""

CHARACTERS_PER_TOKEN = 4
EXPECTED_AT = (4, 8, 16)
_DISK_MARGIN_BYTES = 64 * 1024 * 1024


def make_pair(
    shape: str | Shape,
    quantisation: str,
    folder: Path,
    seed: int = 0,
    agreement: Mapping[Category, float] | None = None,
    progress: Callable[[int, int], None] | None = None,
    force: bool = False,
) -> tuple[Path, Path]:
    """Write a calibration pair and return the paths of target and draft.

    agreement: share of each category's states on which both argmaxes agree; what is left out
    keeps `RESEMBLING_AGREEMENT`. progress is called with bytes done and bytes in all. A pair
    already there is returned as it is. Raises: ResourceError before anything is written where
    the disk is too small or (unless forced) the memory could not hold the pair; UserError for an
    unknown shape or quantisation.
    """
    outline = shape if isinstance(shape, Shape) else shape_named(shape)
    if quantisation not in QUANTISATIONS:
        raise UserError(
            f"There is no calibration quantisation '{quantisation}'; "
            f"choose one of {', '.join(QUANTISATIONS)}."
        )
    shares = {**RESEMBLING_AGREEMENT, **(agreement or {})}
    models = {"target": outline.target, "draft": outline.draft}
    vocab = {role: model.vocab_size or outline.minimal_vocab for role, model in models.items()}
    law = Law(
        seed=seed,
        states_per_category=outline.states_per_category,
        categories=tuple(category.value for category in Category),
        agreement=tuple(float(shares[category]) for category in Category),
        vocab_size=vocab["target"],
    )
    parts = [FORMAT, quantisation, law.to_json(), repr(outline.target), repr(outline.draft)]
    fingerprint = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    stem = f"calibration-{outline.name}-{quantisation}-{fingerprint[:8]}"
    paths = {role: folder / f"{stem}-{role}.gguf" for role in models}
    missing = [role for role in models if not _is_there(paths[role], fingerprint)]
    if not missing:
        return paths["target"], paths["draft"]

    sizes = {
        role: sum(plan.nbytes for plan in tensors(models[role], vocab[role], quantisation))
        for role in models
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The folder {folder} cannot be made ({error.strerror}); choose another one."
        ) from error
    _refuse_if_too_large(folder, sum(sizes[role] for role in missing), sum(sizes.values()), force)
    fields = {"pair": fingerprint, "expected": _expected_json(law)}
    total, done = sum(sizes[role] for role in missing), 0

    def advance(written: int) -> None:
        nonlocal done
        done += written
        if progress:
            progress(done, total)

    try:
        for role in missing:
            write_model(
                paths[role], role, models[role], vocab[role], quantisation, law, fields, advance
            )
    except OSError as error:
        raise ResourceError(
            f"The calibration pair could not be written to {folder} ({error.strerror}); "
            f"nothing half-written was left, so free the disk or choose another folder."
        ) from error
    return paths["target"], paths["draft"]


def pair_bytes(shape: Shape, quantisation: str) -> tuple[int, int]:
    """Return the tensor bytes of target and draft."""
    sizes = [
        sum(
            plan.nbytes
            for plan in tensors(model, model.vocab_size or shape.minimal_vocab, quantisation)
        )
        for model in (shape.target, shape.draft)
    ]
    return sizes[0], sizes[1]


def is_calibration(header: Header) -> bool:
    """Say whether a file is one of a calibration pair, and so no language model."""
    return METADATA_LAW in header.metadata


def law_of(header: Header) -> Law:
    """Return the law of a calibration file. Raises: UserError where it is none."""
    text = header.metadata.get(METADATA_LAW)
    if not isinstance(text, str):
        raise UserError(f"{header.path} is not a calibration file: it carries no law.")
    return Law.from_json(text)


def start_state(law: Law, category: str, prompt_text: str, index: int = 0) -> int:
    """Return the state a calibration prompt starts generation from."""
    states = law.states(category)
    digest = hashlib.sha256(f"{category}\0{index}\0{prompt_text}".encode()).digest()
    return states[int.from_bytes(digest[:8], "big") % len(states)]


def calibration_prompt(law: Law, category: str, prompt_text: str, index: int = 0) -> str:
    """Return a prompt that puts both models in a known state of the category.

    The vocabulary spends a token on every byte, where a real one spends about one on four
    characters; so only the first quarter of the text is kept, and the prompt costs what it would
    cost a real pair. The last token is the state's marker, through any engine that takes text.
    """
    kept = prompt_text[: len(prompt_text) // CHARACTERS_PER_TOKEN]
    return kept + law.marker(start_state(law, category, prompt_text, index))


def _is_there(path: Path, fingerprint: str) -> bool:
    if not path.is_file():
        return False
    try:
        return read_header(path).metadata.get(f"{METADATA_PREFIX}.pair") == fingerprint
    except UserError:
        return False


def _refuse_if_too_large(folder: Path, to_write: int, to_load: int, force: bool) -> None:
    free = shutil.disk_usage(folder).free
    if to_write + _DISK_MARGIN_BYTES > free:
        raise ResourceError(
            f"This calibration pair needs {_gb(to_write)} GB and {folder} has {_gb(free)} GB free; "
            f"choose a smaller shape or quantisation, or another folder."
        )
    memory = psutil.virtual_memory().total
    if to_load > memory and not force:
        raise ResourceError(
            f"This calibration pair takes {_gb(to_load)} GB to load and this machine has "
            f"{_gb(memory)} GB of memory; choose a smaller shape or quantisation, or force it."
        )


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f}"


def _expected_json(law: Law) -> str:
    expected = {
        category: {
            str(n_max): round(
                law.expected_acceptance(category, n_max, 0.0, AcceptRule.MATCH).rate, 6
            )
            for n_max in EXPECTED_AT
        }
        for category in law.categories
    }
    return json.dumps({"temperature": 0, "acceptance_by_n_max": expected})
