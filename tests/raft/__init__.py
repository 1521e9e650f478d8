"""Tests of the Raft core, written from the properties of the protocol and not from the code."""
