"""The first state of a shard: what every first member of its group writes, byte for byte the same, from the first directory.

It stands at index 1 of term 1, as if a first entry had been applied; the group's log begins at index 2. Nobody who joins
later ever does this: a later member starts from nothing and is sent a snapshot.
"""

from collections.abc import Callable, Iterator
from functools import partial

from raftcache.ids import CATALOG_SHARD, Index, NodeId, ReplicaId, ShardId, Slot, Term
from raftcache.kv.codec import encode_batch
from raftcache.kv.limits import KvLimits
from raftcache.kv.machine import Machine
from raftcache.kv.operations import SYSTEM_NAMESPACE, Command, Put
from raftcache.kv.records import Records
from raftcache.node.directory import DIRECTORY_KEY, Directory, DirectoryShard
from raftcache.raft.configuration import encode_configuration
from raftcache.raft.messages import Configuration, SnapshotMeta
from raftcache.storage.state import StateStore
from raftcache.storage.wal import Wal

FIRST_INDEX = Index(1)
FIRST_TERM = Term(1)


def first_meta(shard: DirectoryShard) -> SnapshotMeta:
    """Index 1, term 1, and the first voters."""
    voters = tuple(sorted(placed.replica for placed in shard.replicas))
    return SnapshotMeta(FIRST_INDEX, FIRST_TERM, Configuration(voters=voters))


def write_first_state(records: Records, directory: Directory, shard: DirectoryShard, limits: KvLimits) -> None:
    """The state machine's first records; for the catalog, with the directory in it, at version 1."""
    configuration = encode_configuration(first_meta(shard).configuration)
    catalog = shard.shard == CATALOG_SHARD
    Machine.create(
        records,
        shard=shard.shard,
        ranges=shard.ranges,
        epoch=directory.epoch,
        index=Index(0) if catalog else FIRST_INDEX,
        term=Term(0) if catalog else FIRST_TERM,
        configuration=configuration,
        limits=KvLimits(**directory.session_limits),
    )
    if catalog:
        machine = Machine(records, limits)
        put = Command(Put(DIRECTORY_KEY, directory.encode(), namespace=SYSTEM_NAMESPACE), Slot(-1))
        machine.apply(FIRST_INDEX, FIRST_TERM, encode_batch([put], proposed_ms=0))
        machine.flush()


def _write(directory: Directory, shard: DirectoryShard, limits: KvLimits, records: Records) -> None:
    write_first_state(records, directory, shard, limits)


def create_first_replicas(
    directory: Directory,
    node: NodeId,
    wal: Wal,
    open_state: Callable[[ReplicaId, ShardId], StateStore],
    limits: KvLimits,
) -> Iterator[None]:
    """Makes this node's replicas of a new cluster, one in each step; durable when it is exhausted.

    Each takes a handful of fsyncs, so a caller on a loop lets the loop run between steps. Done again from the start if it
    was interrupted.
    """
    for shard in directory.shards.values():
        placed = shard.on_node(node)
        if placed is None:
            continue
        state = open_state(placed.replica, shard.shard)
        try:
            earlier = state.open()
            assert earlier is None, f"replica {placed.replica} of a new cluster has a state already"
            state.bootstrap(first_meta(shard), partial(_write, directory, shard, limits))
        finally:
            # A failed init may be asked for again, in the same process.
            state.discard_live()
        wal.create(placed.replica, shard.shard, first_meta(shard))
        yield
    wal.sync()
