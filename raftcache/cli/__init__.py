"""The command `raftcache`."""

from raftcache.cli.main import main

__all__ = ["main"]
