"""What llama.cpp is told before it loads a model: NUMA policy, devices, overridden metadata."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping
from typing import Any

from llama_cpp import llama_cpp as lib
from llama_cpp._ggml import libggml

from worker.bench.failure import Failure

NO_DEVICE = "none"
_NUMA = {
    "distribute": lib.GGML_NUMA_STRATEGY_DISTRIBUTE,
    "isolate": lib.GGML_NUMA_STRATEGY_ISOLATE,
    "numactl": lib.GGML_NUMA_STRATEGY_NUMACTL,
}
# ggml-backend.h: enum ggml_backend_dev_type
_CPU = 0

_count = libggml.ggml_backend_dev_count
_count.restype = ctypes.c_size_t
_get = libggml.ggml_backend_dev_get
_get.argtypes, _get.restype = [ctypes.c_size_t], ctypes.c_void_p
_name = libggml.ggml_backend_dev_name
_name.argtypes, _name.restype = [ctypes.c_void_p], ctypes.c_char_p
_type = libggml.ggml_backend_dev_type
_type.argtypes, _type.restype = [ctypes.c_void_p], ctypes.c_int


def choose_numa(policy: str) -> None:
    """Set the NUMA policy of this process; llama.cpp lets it be set once, before any load.

    Raises Failure "unsupported" where llama.cpp would do nothing and say nothing.
    """
    if policy == "off":
        return
    if sys.platform != "linux":
        raise Failure("unsupported", f"llama.cpp has NUMA policies on Linux only, so no {policy}.")
    lib.llama_numa_init(_NUMA[policy])


def devices(names: str) -> ctypes.Array[ctypes.c_void_p]:
    """Return llama.cpp's list of devices for names with commas between them, or for "none".

    Raises Failure "unsupported", with the names there are, where one is not here.
    """
    known = {_name(at).decode(): at for at in map(_get, range(_count())) if _type(at) != _CPU}
    wanted = [] if names == NO_DEVICE else names.split(",")
    for name in wanted:
        if name not in known:
            there = ", ".join([*known, NO_DEVICE])
            raise Failure(
                "unsupported", f"There is no device {name} for the draft here; there is {there}."
            )
    # A null pointer ends the list.
    return (ctypes.c_void_p * (len(wanted) + 1))(*(known[name] for name in wanted), None)


def overrides(numbers: Mapping[str, int]) -> Any:
    """Return llama.cpp's list of metadata that counts in place of the file's."""
    # An empty key ends the list.
    found = (lib.llama_model_kv_override * (len(numbers) + 1))()
    for entry, (key, number) in zip(found, numbers.items(), strict=False):
        entry.tag = lib.LLAMA_KV_OVERRIDE_TYPE_INT
        entry.key = key.encode()
        entry.value.val_i64 = number
    return found
