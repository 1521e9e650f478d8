"""The gateway: its services over a node in memory."""
