"""Node-to-node transport: framed, checksummed, bounded TCP (TLS where configured), one connection per pair and direction."""
