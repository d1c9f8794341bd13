"""What comes before a measurement: first runs are cold, and some machines clock down when idle."""

from __future__ import annotations

WARM_UP_TOKENS = 16
# A job's own prompt would stay behind, in a server's prompt cache or in what n-gram kinds remember.
WARM_UP_TEXT = "The quick brown fox jumps over the lazy dog."
# Idle for longer, it is warmed up again.
STAYS_WARM_S = 1.0
