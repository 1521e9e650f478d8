"""The kinds of requests between nodes. Values are part of the protocol between nodes; those from 16 on pass before a
node belongs to a cluster."""

KIND_FORWARD = 1
"""A list of client requests for a shard that the receiver leads (`forwarding`)."""
KIND_DIRECTORY = 2
"""My directory's epoch; answered by a newer directory, or nothing."""
KIND_DIRECTORY_PUSH = 3
"""A new directory."""
KIND_STATUS = 4
"""What the node knows of itself and its replicas, as JSON."""
KIND_TRANSFER = 5
"""Hand over the leadership of a shard, as JSON."""
KIND_LEADER = 6
"""Who leads this shard? Answered by a node id, 0 where it is not known."""
KIND_WILLING = 7
"""Do you want to lead? Answered by one byte: not while leaving, nor while the disk is full."""
KIND_IDENTIFY = 16
"""Who are you? Answered by identity and addresses, as JSON."""
KIND_INIT = 17
"""The first directory of a new cluster that the receiver is to be part of."""
KIND_JOIN = 18
"""Become a node of this cluster, so far without replicas."""
