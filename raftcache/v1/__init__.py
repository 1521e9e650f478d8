"""Generated from proto/raftcache/v1 by proto/generate.sh: the public key-value interface."""
