"""The leaves of the Raft core, each alone, against naive twins and models."""
