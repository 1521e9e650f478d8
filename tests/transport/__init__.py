"""Tests of the transport between nodes."""
