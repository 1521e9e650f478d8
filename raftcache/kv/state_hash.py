"""The state hash: what a shard's data amounts to, as one number that every replica must agree on at every index.

Each record adds the 64-bit hash that it ends in (`layout.hash_of`), summed modulo 2^128. A sum does not depend on
order, so it is kept up incrementally, one subtraction and one addition per write; and it is kept *per slot*, with a
count of records, so that a split hands sums over instead of rescanning, and a mismatch is narrowed to a slot.

Stored are pages of 64 slots, not slots: 1,000 random puts touch nearly as many slots, but at most 256 pages, and a
full flush is 256 puts of 1.5 KiB instead of 16,384 small ones.

Caveat: the sum finds damage and divergence. It is not built to withstand somebody who can choose records at will.
"""

from dataclasses import dataclass, field
from itertools import chain
from struct import Struct

from raftcache.ids import Slot
from raftcache.kv.layout import TABLE_HASHES, damaged, newer, seal, table_end, unseal
from raftcache.kv.records import Records
from raftcache.kv.slots import SLOT_COUNT

HASH_BYTES = 16
HASH_MASK = (1 << 128) - 1

PAGE_SLOTS = 64
PAGE_VERSION = 1
_PAGE = Struct(">B" + "Q16s" * PAGE_SLOTS)
"""A version, then for each slot its count of records and the sum of their hashes."""
_SLOT = Struct(">Q16s")
"""One slot of a page."""
_EMPTY_PAGE = bytes([PAGE_VERSION]) + bytes(_PAGE.size - 1)

assert SLOT_COUNT % PAGE_SLOTS == 0, f"{SLOT_COUNT} slots do not fill pages of {PAGE_SLOTS}"
assert SLOT_COUNT // PAGE_SLOTS <= 1 << 16, "a page's number has two bytes in its record key"


@dataclass(slots=True)
class StateHash:
    """Counts and sums per slot. The hot path of `Machine` writes the dicts itself, and `touched` with them."""

    counts: dict[int, int] = field(default_factory=dict)
    """Slot -> records in it. Slots never written are absent."""
    sums: dict[int, int] = field(default_factory=dict)
    """Slot -> sum of record hashes, *not* yet reduced modulo 2^128."""
    touched: dict[int, None] = field(default_factory=dict)
    """Pages with slots that changed since the last flush. A dict, because sets have no order."""

    def change(self, slot: int, *, count: int, hash_delta: int) -> None:
        """Account for records that came, went or changed in `slot`."""
        self.counts[slot] = self.counts.get(slot, 0) + count
        self.sums[slot] = self.sums.get(slot, 0) + hash_delta
        self.touched[slot // PAGE_SLOTS] = None

    def total(self) -> int:
        """The hash of all slots."""
        return sum(self.sums.values()) & HASH_MASK

    def record_count(self) -> int:
        """The records of all slots."""
        return sum(self.counts.values())

    def of(self, slot: Slot) -> tuple[int, int]:
        """Count and hash of one slot."""
        return self.counts.get(slot, 0), self.sums.get(slot, 0) & HASH_MASK

    def flush(self, records: Records) -> None:
        """Write the touched pages. A page without records is deleted, so that records depend on the state alone."""
        for page in self.touched:
            key = page_key(page)
            body = self._encode(page)
            if body == _EMPTY_PAGE:
                records.delete(key)
            else:
                records.put(key, seal(key, body))
        self.touched.clear()

    def _encode(self, page: int) -> bytes:
        """All slots of the page at once: slot by slot, the pages of 16,384 slots would hold a node up for 30 ms."""
        slots = range(page * PAGE_SLOTS, (page + 1) * PAGE_SLOTS)
        counts = [self.counts.get(slot, 0) for slot in slots]
        sums = [self.sums.get(slot, 0) & HASH_MASK for slot in slots]
        if min(counts) <= 0:
            for slot, count, total in zip(slots, counts, sums, strict=True):
                assert count > 0 or not total, f"slot {slot} has {count} records, and their hash is {total:#x}"
        hashes = [total.to_bytes(HASH_BYTES, "big") for total in sums]
        return _PAGE.pack(PAGE_VERSION, *chain.from_iterable(zip(counts, hashes, strict=True)))

    @staticmethod
    def load(records: Records) -> "StateHash":
        """What was flushed. Raises: `Corruption`, `UnsupportedVersion`."""
        state = StateHash()
        for key, record in records.scan(TABLE_HASHES, table_end(TABLE_HASHES)):
            body = unseal(key, record)
            if body[0] > PAGE_VERSION:
                raise newer(f"the hash page {key!r}", found=body[0], known=PAGE_VERSION)
            page = int.from_bytes(key[1:], "big")
            if body[0] != PAGE_VERSION or len(body) != _PAGE.size or page >= SLOT_COUNT // PAGE_SLOTS or len(key) != 3:
                raise damaged(key, record, "is no page of hashes")
            for offset, (count, digest) in enumerate(_SLOT.iter_unpack(body[1:])):
                if count:
                    state.counts[page * PAGE_SLOTS + offset] = count
                    state.sums[page * PAGE_SLOTS + offset] = int.from_bytes(digest, "big")
        return state


def page_key(page: int) -> bytes:
    """The record key of a page."""
    return TABLE_HASHES + page.to_bytes(2, "big")
