"""raftcache: a sharded, strongly consistent key-value cache, replicated with Raft."""
