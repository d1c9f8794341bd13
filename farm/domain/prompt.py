"""Prompts and the eight kinds of content that published advice distinguishes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum


class Category(StrEnum):
    """A content category; the order is the one reports use."""

    CODE_COMPLETION = "code-completion"
    CODE_GENERATION = "code-generation"
    STRUCTURED_OUTPUT = "structured-output"
    TOOL_CALLS = "tool-calls"
    SUMMARISATION = "summarisation"
    CHAT = "chat"
    CREATIVE_PROSE = "creative-prose"
    MATH_REASONING = "math-reasoning"


PLAIN_TEXT = frozenset({Category.CODE_COMPLETION.value})
"""Text to go on from, which no chat template goes around: an editor sends it as it is."""


@dataclass(frozen=True)
class Prompt:
    """One prompt. `category` is a `Category` value or a user's own word."""

    id: str
    category: str
    text: str

    @property
    def digest(self) -> str:
        """Return the sha256 of category and text: the prompt's identity, whatever its id."""
        return hashlib.sha256(f"{self.category}\0{self.text}".encode()).hexdigest()


@dataclass(frozen=True)
class PromptSet:
    """A named, ordered collection of prompts, versioned by its digest."""

    name: str
    prompts: tuple[Prompt, ...]

    @property
    def digest(self) -> str:
        """Return the sha256 over the prompts' digests in order."""
        joined = "\n".join(prompt.digest for prompt in self.prompts)
        return hashlib.sha256(joined.encode()).hexdigest()

    @property
    def categories(self) -> tuple[str, ...]:
        """Return the categories in order of first appearance."""
        return tuple(dict.fromkeys(prompt.category for prompt in self.prompts))
