"""Reading prompt sets: JSON Lines in, a `PromptSet` or one clear sentence out."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from farm.domain.prompt import Prompt, PromptSet
from farm.errors import UserError
from farm.paths import resource

STANDARD = "standard"

_KEYS = "the allowed keys are category, text and, optionally, id"
_CATEGORY = "lower-case letters, digits and hyphens, a letter or digit first"

_Filled = Annotated[str, StringConstraints(pattern=r"\S")]
_Word = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]*$")]


class _Line(BaseModel):
    """One line of a prompt file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    category: _Word
    text: _Filled
    id: _Filled | None = None


def standard() -> PromptSet:
    """Return the shipped set: the eight categories in report order, twelve prompts each."""
    return load_prompt_set(resource("configs") / "prompts" / "standard.jsonl", STANDARD)


def find_prompt_set(reference: str, relative_to: Path) -> PromptSet:
    """Return the set that a sweep names: `standard`, or the path of a JSONL file.

    A relative path starts at `relative_to`, the sweep file's folder.

    Raises:
        UserError: as `load_prompt_set`.
    """
    return standard() if reference == STANDARD else load_prompt_set(relative_to / reference)


def load_prompt_set(path: Path, name: str | None = None) -> PromptSet:
    """Read a prompt set from a JSONL file in UTF-8, one object per line; blank lines are skipped.

    The set is called `name`, or like the file without its ending. A prompt without an id gets
    `<category>-<line number>`; lines count from 1.

    Raises:
        UserError: the file cannot be read, a line is not a prompt, or two lines clash. The
            message names the file, the first bad line, what is wrong and what to do.
    """
    prompts: list[Prompt] = []
    line_of_id: dict[str, int] = {}
    line_of_digest: dict[str, int] = {}
    # Not splitlines(): JSON strings may hold U+2028 and other separators as they are.
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if not line.strip():
            continue
        prompt = _parse(line, path, number)
        earlier = line_of_id.setdefault(prompt.id, number)
        if earlier != number:
            raise _refusal(
                path,
                number,
                f"id {prompt.id!r} is already used in line {earlier}",
                "give each prompt its own id or leave the ids out",
            )
        earlier = line_of_digest.setdefault(prompt.digest, number)
        if earlier != number:
            raise _refusal(
                path,
                number,
                f"the text repeats line {earlier} in category {prompt.category!r}",
                "remove one of the two",
            )
        prompts.append(prompt)
    if not prompts:
        raise UserError(
            f"{path} holds no prompts; write one JSON object per line, and {_KEYS}, "
            f"or use {STANDARD!r} for the shipped set"
        )
    return PromptSet(name or path.stem, tuple(prompts))


def _read(path: Path) -> str:
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder, not a prompt file; name a JSONL file in it")
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"there is no prompt file {path}; correct the path (a relative one starts at the "
            f"sweep file's folder) or use {STANDARD!r} for the shipped set"
        ) from None
    except OSError as error:
        raise UserError(
            f"prompt file {path} cannot be read ({error.strerror}); "
            "make it readable or name another file"
        ) from error
    # Editors on Windows put a byte order mark in front, which json refuses.
    raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise _refusal(
            path, line, f"byte 0x{raw[error.start]:02x} is not UTF-8", "save the file as UTF-8"
        ) from None


def _parse(line: str, path: Path, number: int) -> Prompt:
    try:
        # No key takes a number, and float() has no limit on digits as int() has.
        value = json.loads(line, object_pairs_hook=_unique_keys, parse_int=float)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {number}, column {error.colno}: not JSON ({error.msg}); "
            f"write one JSON object per line, and {_KEYS}"
        ) from None
    except RecursionError:
        raise _refusal(
            path, number, "nested too deeply to be a prompt", f"{_KEYS}: correct this line"
        ) from None
    except _RepeatedKey as error:
        raise _refusal(path, number, f"key {error.key!r} appears twice", "keep one") from None
    if not isinstance(value, dict):
        raise _refusal(
            path,
            number,
            f"a JSON {_json_type(value)} where an object belongs",
            f"write one JSON object per line, and {_KEYS}",
        )
    try:
        parsed = _Line.model_validate(value)
    except ValidationError as error:
        problems = " and ".join(_problem(detail) for detail in error.errors())
        raise _refusal(path, number, problems, f"{_KEYS}: correct this line") from None
    return Prompt(parsed.id or f"{parsed.category}-{number}", parsed.category, parsed.text)


class _RepeatedKey(Exception):
    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys: set[str] = set()
    for key, _ in pairs:
        if key in keys:
            raise _RepeatedKey(key)
        keys.add(key)
    return dict(pairs)


def _problem(detail: Any) -> str:
    """Return one pydantic error in the words of the file."""
    key = str(detail["loc"][0]) if detail["loc"] else "a key"
    given = detail["input"]
    match detail["type"]:
        case "extra_forbidden":
            return f"unknown key {key!r}"
        case "missing":
            return f"missing key {key!r}"
        case "string_pattern_mismatch" if not given.strip():
            return f"{key} is empty"
        case "string_pattern_mismatch":
            return f"{key} {given!r} is not a category word ({_CATEGORY})"
        case "string_type":
            return f"{key} is a JSON {_json_type(given)}, not a string"
        case _:
            return f"{key} is not valid text ({detail['msg']})"


def _json_type(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


def _refusal(path: Path, line: int, problem: str, remedy: str) -> UserError:
    return UserError(f"{path}, line {line}: {problem}; {remedy}")
