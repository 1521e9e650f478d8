"""Benchmarks: raftcache beside a fresh etcd on the same machine, in the same minutes."""
