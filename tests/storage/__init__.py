"""Tests of the log, hard state, live state and checkpoints."""
