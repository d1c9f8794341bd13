"""What a GGUF file says about itself, without touching its weights.

The format is described in ggml's docs/gguf.md. The gguf package has a reader too; it makes a
numpy view of every string and takes seconds on a large vocabulary, so the farm has its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gguf import LlamaFileType

from farm.errors import UserError
from farm.gguf.header_parse import Array, Scalar, TensorInfo, parse

__all__ = ["Array", "Header", "Scalar", "TensorInfo", "read_header"]


@dataclass(frozen=True)
class Header:
    """One model's header. `tensor_bytes` and `file_bytes` count all parts of a split model.

    A property is None where the file does not say; nothing is guessed.
    """

    path: Path
    version: int
    alignment: int
    file_bytes: int
    metadata: Mapping[str, Scalar | Array] = field(repr=False)
    tensors: tuple[TensorInfo, ...] = field(repr=False)
    parts: tuple[Path, ...] = ()

    def text(self, key: str) -> str | None:
        """Return a string field, None where it is missing or no string."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def number(self, key: str) -> int | None:
        """Return an integer field; of a per-layer array the largest."""
        value = self.metadata.get(key)
        if isinstance(value, Array):
            numbers = [item for item in value.values() if isinstance(item, int)]
            return max(numbers, default=None)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def arch_number(self, key: str) -> int | None:
        """Return the integer field `<architecture>.<key>`."""
        return self.number(f"{self.architecture}.{key}")

    @property
    def architecture(self) -> str:
        """Return llama.cpp's name of the architecture, empty where the file names none."""
        return self.text("general.architecture") or ""

    @property
    def name(self) -> str:
        """Return the model's own name, or the file's."""
        return self.text("general.name") or self.path.stem

    @property
    def n_layer(self) -> int | None:
        """Return the number of blocks."""
        return self.arch_number("block_count")

    @property
    def n_embd(self) -> int | None:
        """Return the width of the residual stream."""
        return self.arch_number("embedding_length")

    @property
    def n_head(self) -> int | None:
        """Return the number of attention heads (the largest, where layers differ)."""
        return self.arch_number("attention.head_count")

    @property
    def n_head_kv(self) -> int | None:
        """Return the number of key-value heads; as many as heads where the file is silent."""
        grouped = self.arch_number("attention.head_count_kv")
        return self.n_head if grouped is None else grouped

    @property
    def context_length(self) -> int | None:
        """Return the context the model was trained for, in tokens."""
        return self.arch_number("context_length")

    @property
    def tokens(self) -> Array | None:
        """Return the vocabulary's token texts."""
        value = self.metadata.get("tokenizer.ggml.tokens")
        return value if isinstance(value, Array) else None

    @property
    def vocab_size(self) -> int | None:
        """Return the number of tokens."""
        return self.tokens.count if self.tokens else self.arch_number("vocab_size")

    @property
    def parameter_count(self) -> int:
        """Return the number of weights."""
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def tensor_bytes(self) -> int:
        """Return the bytes of all tensors, padding not counted."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def file_type(self) -> str | None:
        """Return the quantisation's label as people write it, such as `Q4_K_M`."""
        value = self.number("general.file_type")
        try:
            return None if value is None else LlamaFileType(value).name.removeprefix("MOSTLY_")
        except ValueError:
            return f"type {value}"


def read_header(path: Path | str) -> Header:
    """Read a GGUF header. Of a split model give the first part; the others must lie beside it.

    Raises: UserError, one sentence with what to do, for a file that is missing, no GGUF, of an
    unknown version or byte order, cut short, or corrupt.
    """
    first = Path(path)
    parsed = parse(first)
    header = Header(
        path=first,
        version=parsed.version,
        alignment=parsed.alignment,
        file_bytes=parsed.file_bytes,
        metadata=parsed.metadata,
        tensors=parsed.tensors,
        parts=(first,),
    )
    count = header.number("split.count") or 1
    return _with_siblings(header, count) if count > 1 else header


def _with_siblings(header: Header, count: int) -> Header:
    own = (header.number("split.no") or 0) + 1
    tail = f"-{own:05d}-of-{count:05d}.gguf"
    if not header.path.name.endswith(tail):
        raise UserError(
            f"{header.path} is part {own} of {count} of a split model but is not named '*{tail}', "
            f"so llama.cpp cannot find the others; rename it or merge the parts with "
            f"llama-gguf-split --merge."
        )
    stem = header.path.name.removesuffix(tail)
    parts = [
        header.path.with_name(f"{stem}-{number:05d}-of-{count:05d}.gguf")
        for number in range(1, count + 1)
    ]
    if own != 1:
        raise UserError(
            f"{header.path} is part {own} of {count} of a split model; "
            f"give the first part, {parts[0].name}."
        )
    for part in parts:
        if not part.is_file():
            raise UserError(
                f"{header.path} is a split model and its part {part.name} is missing beside it; "
                f"download all {count} parts, or merge them with llama-gguf-split --merge."
            )
    others = [parse(part) for part in parts[1:]]
    return Header(
        path=header.path,
        version=header.version,
        alignment=header.alignment,
        file_bytes=header.file_bytes + sum(other.file_bytes for other in others),
        metadata=header.metadata,
        tensors=header.tensors + tuple(t for other in others for t in other.tensors),
        parts=tuple(parts),
    )
