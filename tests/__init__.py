"""Tests of raftcache, one package per layer."""
