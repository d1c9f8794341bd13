"""Parsing the bytes of a GGUF header; every count is checked against the file before it is used."""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass, field
from pathlib import Path

from gguf import GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFValueType

from farm.errors import UserError
from farm.gguf.tensor_types import type_bytes

Scalar = str | int | float | bool

SUPPORTED_VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
"""GGML_MAX_DIMS (ggml.h)."""

_MAGIC = b"GGUF"
_FORMATS = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.BOOL: "<?",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
}
_STRUCTS = {kind: struct.Struct(form) for kind, form in _FORMATS.items()}
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


@dataclass(frozen=True)
class Array:
    """An array field, kept as the file's bytes until someone asks for its items."""

    item_type: GGUFValueType
    count: int
    raw: bytes = field(repr=False)

    def values(self) -> list[Scalar]:
        """Return all items; strings as text, undecodable bytes replaced."""
        if self.item_type is GGUFValueType.STRING:
            return [item.decode("utf-8", "replace") for item in self.strings()]
        form = _FORMATS[self.item_type]
        return list(struct.unpack(f"<{self.count}{form[1]}", self.raw))

    def strings(self) -> list[bytes]:
        """Return the items of a string array as stored, empty for any other type."""
        if self.item_type is not GGUFValueType.STRING:
            return []
        raw, unpack, position, items = self.raw, _U64.unpack_from, 0, []
        for _ in range(self.count):
            start = position + 8
            position = start + unpack(raw, position)[0]
            items.append(raw[start:position])
        return items


@dataclass(frozen=True)
class TensorInfo:
    """One tensor. `shape` is in ggml's order, fastest first; `offset` counts from the data."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    offset: int

    @property
    def elements(self) -> int:
        """Return the number of weights."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Return the size in the file, without padding."""
        return type_bytes(self.type, self.elements)


@dataclass(frozen=True)
class Parsed:
    """One file's header."""

    version: int
    alignment: int
    file_bytes: int
    metadata: dict[str, Scalar | Array]
    tensors: tuple[TensorInfo, ...]


def parse(path: Path) -> Parsed:
    """Parse one file. Raises: UserError as `header.read_header` says."""
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise UserError(f"{path} is a folder; give the .gguf file in it.")
        if size < len(_MAGIC):
            raise UserError(f"{path} is no GGUF model: it holds {size} bytes; download it again.")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(path, data, size).read()
    except FileNotFoundError:
        raise UserError(f"There is no file {path}; check the path.") from None
    except PermissionError:
        raise UserError(f"{path} may not be read by this user; change its permissions.") from None
    except (struct.error, IndexError, OverflowError):
        raise UserError(
            f"{path} ends inside its header, so the download was cut short; download it again."
        ) from None


class _Reader:
    def __init__(self, path: Path, data: mmap.mmap, size: int) -> None:
        self.path, self.data, self.size, self.position = path, data, size, 0

    def read(self) -> Parsed:
        version = self._version()
        n_tensors, n_fields = self._u64(), self._u64()
        # A tensor entry takes 32 bytes or more and a field 13, whatever they say.
        self._believable(n_tensors, 32, "tensors")
        self._believable(n_fields, 13, "metadata fields")
        metadata: dict[str, Scalar | Array] = {}
        for _ in range(n_fields):
            key = self._string()
            metadata[key] = self._value(self._value_type())
        tensors = tuple(self._tensor() for _ in range(n_tensors))
        alignment = metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            raise self._corrupt(f"it asks for an alignment of {alignment}")
        data_start = -(-self.position // alignment) * alignment
        end = max((data_start + tensor.offset + tensor.nbytes for tensor in tensors), default=0)
        if end > self.size:
            raise UserError(
                f"{self.path} is cut short: {end - self.size:,} of its {end:,} bytes are missing; "
                f"download it again."
            )
        return Parsed(version, alignment, self.size, metadata, tensors)

    def _version(self) -> int:
        if self.data[:4] != _MAGIC:
            raise UserError(
                f"{self.path} is no GGUF model: it does not start with 'GGUF'; "
                f"give a .gguf file, or download it again."
            )
        self.position = 4
        version = self._u32()
        if version and version & 0xFFFF == 0:
            raise UserError(
                f"{self.path} is a big-endian GGUF file, which this machine cannot load; "
                f"convert it with gguf_convert_endian.py."
            )
        if version not in SUPPORTED_VERSIONS:
            known = " and ".join(map(str, SUPPORTED_VERSIONS))
            raise UserError(
                f"{self.path} is GGUF version {version} and this farm reads {known}; "
                f"convert the model again with a current llama.cpp."
            )
        return version

    def _tensor(self) -> TensorInfo:
        name, n_dimensions = self._string(), self._u32()
        if n_dimensions > MAX_DIMENSIONS:
            raise self._corrupt(f"tensor '{name}' has {n_dimensions} dimensions")
        shape = tuple(self._u64() for _ in range(n_dimensions))
        number, offset = self._u32(), self._u64()
        try:
            kind = GGMLQuantizationType(number)
        except ValueError:
            raise UserError(
                f"{self.path} stores tensor '{name}' in type {number}, which this farm's gguf "
                f"package does not know; update it, or use another quantisation."
            ) from None
        return TensorInfo(name, shape, kind, offset)

    def _value(self, kind: GGUFValueType) -> Scalar | Array:
        if kind is GGUFValueType.STRING:
            return self._string()
        if kind is GGUFValueType.ARRAY:
            return self._array()
        packed = _STRUCTS[kind]
        value: Scalar = packed.unpack_from(self.data, self.position)[0]
        self.position += packed.size
        return value

    def _array(self) -> Array:
        kind, count = self._value_type(), self._u64()
        if kind is GGUFValueType.ARRAY:
            raise self._corrupt("it nests arrays in its metadata")
        start = self.position
        if kind is GGUFValueType.STRING:
            self._believable(count, 8, "strings in one field")
            data, unpack, position = self.data, _U64.unpack_from, start
            for _ in range(count):
                position += 8 + unpack(data, position)[0]
        else:
            self._believable(count, _STRUCTS[kind].size, "values in one field")
            position = start + count * _STRUCTS[kind].size
        if position > self.size:
            raise IndexError
        self.position = position
        return Array(kind, count, self.data[start:position])

    def _value_type(self) -> GGUFValueType:
        number = self._u32()
        try:
            return GGUFValueType(number)
        except ValueError:
            raise self._corrupt(f"a metadata field has the unknown type {number}") from None

    def _string(self) -> str:
        length = self._u64()
        end = self.position + length
        if end > self.size:
            raise IndexError
        text = self.data[self.position : end].decode("utf-8", "replace")
        self.position = end
        return text

    def _u32(self) -> int:
        self.position += 4
        value: int = _U32.unpack_from(self.data, self.position - 4)[0]
        return value

    def _u64(self) -> int:
        self.position += 8
        value: int = _U64.unpack_from(self.data, self.position - 8)[0]
        return value

    def _believable(self, count: int, least_bytes: int, what: str) -> None:
        if count * least_bytes > self.size:
            raise self._corrupt(f"it claims {count:,} {what} in {self.size:,} bytes")

    def _corrupt(self, finding: str) -> UserError:
        return UserError(f"{self.path} is corrupt: {finding}; download it again.")
