from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.store.arrays import VERSION, pack, unpack


@given(st.dictionaries(st.text(), st.lists(st.integers())))
def test_what_was_packed_comes_back(arrays: dict[str, list[int]]) -> None:
    assert unpack(pack(arrays)) == {name: tuple(values) for name, values in arrays.items()}


def test_a_long_output_takes_less_room_than_its_numbers() -> None:
    assert len(pack({"output_ids": [1, 2, 3, 4] * 1000})) < 1000


@pytest.mark.parametrize(
    ("blob", "named"),
    [(bytes([VERSION + 1]) + pack({})[1:], "version 02"), (b"", "version none")],
    ids=["newer", "empty"],
)
def test_another_version_is_refused_by_name(blob: bytes, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        unpack(blob)
