"""The state hash: what a shard's data amounts to, as one number that every replica must agree on at every index.

Each record adds the 64-bit hash that it ends in (`layout.hash_of`), summed modulo 2^128. A sum does not depend on
order, so it is kept up incrementally, one subtraction and one addition per write; and it is kept *per slot*, with a
count of records, so that a split hands sums over instead of rescanning, and a mismatch is narrowed to a slot.

Stored are pages of 64 slots, not slots: 1,000 random puts touch nearly as many slots, but at most 256 pages, and a
full flush is 256 puts of 1.5 KiB instead of 16,384 small ones.

Caveat: the sum finds damage and divergence. It is not built to withstand somebody who can choose records at will.
"""

from dataclasses import dataclass, field
from struct import Struct

from raftcache.ids import Slot
from raftcache.kv.layout import TABLE_HASHES, damaged, newer, seal, table_end, unseal
from raftcache.kv.records import Records
from raftcache.kv.slots import SLOT_COUNT

HASH_BYTES = 16
HASH_MASK = (1 << 128) - 1

PAGE_SLOTS = 64
PAGE_VERSION = 1
_SLOT = Struct(">Q16s")
"""Count of records, sum of their hashes."""
_PAGE_BYTES = 1 + PAGE_SLOTS * _SLOT.size
"""A version, then the slots."""
_NEW_PAGE = bytes([PAGE_VERSION]) + bytes(_PAGE_BYTES - 1)

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
    """Slots changed since the last flush. A dict, because sets have no order."""
    _pages: dict[int, bytearray] = field(default_factory=dict)
    """Page -> its body as of the last flush, so that a flush encodes the touched slots only."""

    def change(self, slot: int, *, count: int, hash_delta: int) -> None:
        """Account for records that came, went or changed in `slot`."""
        self.counts[slot] = self.counts.get(slot, 0) + count
        self.sums[slot] = self.sums.get(slot, 0) + hash_delta
        self.touched[slot] = None

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
        pages: dict[int, bool] = {}
        for slot in self.touched:
            page = slot // PAGE_SLOTS
            body = self._pages.get(page)
            if body is None:
                body = self._pages[page] = bytearray(_NEW_PAGE)
            count = self.counts[slot]
            total = self.sums[slot] = self.sums[slot] & HASH_MASK
            assert count > 0 or not total, f"slot {slot} has {count} records, and their hash is {total:#x}"
            _SLOT.pack_into(body, 1 + slot % PAGE_SLOTS * _SLOT.size, count, total.to_bytes(HASH_BYTES, "big"))
            pages[page] = pages.get(page, False) or not count
        for page, emptied in pages.items():
            key = page_key(page)
            body = self._pages[page]
            if emptied and body == _NEW_PAGE:
                records.delete(key)
                del self._pages[page]
            else:
                records.put(key, seal(key, bytes(body)))
        self.touched.clear()

    @staticmethod
    def load(records: Records) -> "StateHash":
        """What was flushed. Raises: `Corruption`, `UnsupportedVersion`."""
        state = StateHash()
        for key, record in records.scan(TABLE_HASHES, table_end(TABLE_HASHES)):
            body = unseal(key, record)
            if body[0] > PAGE_VERSION:
                raise newer(f"the hash page {key!r}", found=body[0], known=PAGE_VERSION)
            page = int.from_bytes(key[1:], "big")
            if body[0] != PAGE_VERSION or len(body) != _PAGE_BYTES or page >= SLOT_COUNT // PAGE_SLOTS or len(key) != 3:
                raise damaged(key, record, "is no page of hashes")
            state._pages[page] = bytearray(body)
            for offset, (count, digest) in enumerate(_SLOT.iter_unpack(body[1:])):
                if count:
                    state.counts[page * PAGE_SLOTS + offset] = count
                    state.sums[page * PAGE_SLOTS + offset] = int.from_bytes(digest, "big")
        return state


def page_key(page: int) -> bytes:
    """The record key of a page."""
    return TABLE_HASHES + page.to_bytes(2, "big")
