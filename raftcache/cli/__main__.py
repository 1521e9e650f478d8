"""`python -m raftcache.cli` is the command `raftcache`."""

from raftcache.cli.main import main

main()
