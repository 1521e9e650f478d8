"""The deterministic state machine: operations, their bytes, and what a log of them amounts to."""
