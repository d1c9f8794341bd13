"""The child's side of the wire: JSON lines in on stdin, JSON lines out on the first stdout.

In: {"do": "load", target_path, draft_path, settings, overrides}, then any number of {"do": "run",
...job}. Out: {"event": "loaded", build, parameters}, {"event": "sample", ...}, {"event": "done"},
or {"event": "failed", kind, message}, after which the child still serves.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, TextIO

from worker.bench.failure import Failure
from worker.bench.job import Pair
from worker.bench.llama import describe_build, start_backend


def main() -> None:
    """Serve requests until stdin closes."""
    # Whatever else writes to stdout, llama.cpp or a library, goes to the log and not on the wire.
    wire = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    start_backend()
    pair: Pair | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "load":
                pair = None
                pair = Pair(
                    request["target_path"],
                    request["draft_path"],
                    request["settings"],
                    request["overrides"],
                )
                told = {"build": describe_build(), "parameters": pair.parameters()}
                _send(wire, {"event": "loaded", **told})
            else:
                if pair is None:
                    raise Failure("bad-request", "No pair is loaded.")
                for sample in pair.run(request["job"]):
                    _send(wire, {"event": "sample", "sample": sample})
                _send(wire, {"event": "done"})
        except Failure as failure:
            _send(wire, {"event": "failed", "kind": failure.kind, "message": failure.message})


def _send(wire: TextIO, message: dict[str, Any]) -> None:
    wire.write(json.dumps(message, separators=(",", ":")) + "\n")
    wire.flush()


if __name__ == "__main__":
    main()
