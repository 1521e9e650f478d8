"""What a node keeps on disk: the shared write-ahead log, hard state, the data directory, LMDB state and checkpoints."""
