"""One page of a scan over a shard's keys.

Rules of this file: every record is verified, also where only its key or the count is asked for; a page has at least
one entry if anything matches, so that whoever pages on always gets on.
"""

from raftcache.ids import Revision
from raftcache.kv.layout import DATA_PREFIX_BYTES, HASH_BYTES, RECORD_HEAD, data_prefix, decode_record
from raftcache.kv.limits import KvLimits
from raftcache.kv.operations import KeyEntry, Scan, ScanResult
from raftcache.kv.records import Records
from raftcache.kv.slots import slot_of


def scan(records: Records, operation: Scan, limits: KvLimits, *, owned: bytes | None, revision: Revision) -> ScanResult:
    """Read keys in `[lo, hi)` of the namespace, up to the operation's limits or this node's, whichever is less.

    `owned` has one byte per slot, 0 where records are to be passed over; None = take all.
    Raises: `Corruption`, `UnsupportedVersion`.
    """
    prefix = data_prefix(operation.namespace)
    # The end of the namespace is the next one's prefix.
    end = data_prefix(operation.namespace + 1) if operation.hi is None else prefix + operation.hi
    entries_max = max(1, min(operation.limit, limits.scan_entries_max))
    bytes_max = min(operation.bytes_max, limits.scan_bytes_max)
    entries: list[KeyEntry] = []
    count = size = 0
    for record_key, record in records.scan(prefix + operation.lo, end):
        if owned is not None and not owned[slot_of(record_key[DATA_PREFIX_BYTES:])]:
            continue
        if not operation.count_only:
            size += len(record_key) - DATA_PREFIX_BYTES
            if not operation.keys_only:
                size += len(record) - RECORD_HEAD.size - HASH_BYTES
        if count >= entries_max or (count and size > bytes_max):
            return ScanResult(revision, entries, count, True, record_key[DATA_PREFIX_BYTES:])
        entry = decode_record(record_key, record)
        count += 1
        if operation.count_only:
            continue
        if operation.keys_only:
            entry.value = b""
        entries.append(entry)
    return ScanResult(revision, entries, count)
