"""What the parts of the simulator agree on."""

from raftcache.storage.wal import WalConfig

DATA = "data"
"""Each node's directory on its own disk."""
PORT_BASE = 7000
WAL = WalConfig(segment_bytes=64 << 10, cache_bytes_max=64 << 10, pinned_bytes_max=512 << 10)
"""Small, so that segments fill, entries are read back from the disk, and what pins old segments is written again."""
