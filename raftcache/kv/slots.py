"""Which slot a key lies in: Redis Cluster's rule, so that the tags people know keep working.

A slot is CRC-16/XMODEM of the key modulo 16384. If the key has a `{`, and the first `}` after the *first* `{` leaves
something between the two, only that part (the tag) is hashed: `{user1}.name` and `{user1}.mail` share a slot. A key
such as `a{}{b}` has an empty first pair of braces and is hashed whole, as in Redis.

`proto/slot_vectors.json` holds test vectors for clients in other languages; the tests here read the same file.
"""

from binascii import crc_hqx

from raftcache.ids import Slot

SLOT_COUNT = 16384
"""Redis Cluster's number: small enough that an ownership map is 2 KiB of bits, large enough for 1,000 shards."""

SHARD_WIDE = Slot(-1)
"""In a command or a request: no slot; the operation concerns the shard as a whole."""


def slot_of(key: bytes) -> Slot:
    """The slot of `key`, in `[0, SLOT_COUNT)`."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    # binascii's CRC of binhex is CRC-16/XMODEM (polynomial 0x1021, start 0, not reflected), and written in C.
    # Unwrapped: calling `Slot` would cost as much as the CRC, and this runs for every request.
    return crc_hqx(key, 0) & (SLOT_COUNT - 1)  # type: ignore[return-value]


assert SLOT_COUNT & (SLOT_COUNT - 1) == 0, f"the mask in slot_of needs a power of two, not {SLOT_COUNT}"
