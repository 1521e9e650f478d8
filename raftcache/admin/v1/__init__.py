"""Generated from proto/raftcache/admin/v1 by proto/generate.sh: the operators' interface."""
