"""Fault injection on real nodes: processes, links and disks that fail, and what the clients may conclude from it."""
