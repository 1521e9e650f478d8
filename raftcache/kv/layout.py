"""Where each record lies and what stands in it.

Record keys are a one-byte table, for data then the namespace (u32, big-endian), then the key: 511 bytes at most, which
is what LMDB takes. Tables, in the order of a scan:

    D   data        D namespace key      -> record of a key, see `encode_record`
    H   hashes      H page               -> counts and hashes of a page of slots (`state_hash.py`)
    M   meta        M name               -> the machine's own state (`meta.py`)
    S   sessions    S session id         -> a session and its cached replies (`sessions.py`)

Rules of this file:
- every record ends in its hash, XXH3-64 over its key and its body, so a flipped bit in either, or a record that turns
  up under another key, is found by whoever reads it; *nobody reads a record without that check*. The same hash is what
  the record adds to the state hash, so a write computes one hash of what was there and one of what is there now;
- the first byte of every body is its format version; a newer one raises `UnsupportedVersion`, and the replica stops;
- all integers are unsigned and big-endian.

XXH3 finds damage; it is not built to withstand somebody who can choose records at will, and need not be.
"""

from struct import Struct

from xxhash import xxh3_64_digest

from raftcache.errors import Corruption, UnsupportedVersion
from raftcache.kv.operations import DEFAULT_NAMESPACE, KeyEntry

RECORD_KEY_BYTES_MAX = 511
"""LMDB's MDB_MAXKEYSIZE as built."""

TABLE_DATA = b"D"
TABLE_HASHES = b"H"
TABLE_META = b"M"
TABLE_SESSIONS = b"S"

DATA_PREFIX_BYTES = 5
_NAMESPACE = Struct(">I")

RECORD_VERSION = 1
_RESERVED = 0x01
"""Flag: 16 more bytes follow the head, lease and expiry. Nothing writes it yet; reading it works."""
RECORD_HEAD = Struct(">BBQQQ")
"""Version, flags, create revision, mod revision, version (count of writes since creation)."""
_RESERVED_PART = Struct(">QQ")

HASH_BYTES = 8
RECORD_BYTES_MIN = RECORD_HEAD.size + HASH_BYTES


def table_end(table: bytes) -> bytes:
    """The end of a table's range: its first key is the table's byte itself."""
    return bytes([table[0] + 1])


def data_prefix(namespace: int) -> bytes:
    """What the record keys of a namespace begin with."""
    return TABLE_DATA + _NAMESPACE.pack(namespace)


DEFAULT_PREFIX = data_prefix(DEFAULT_NAMESPACE)


# --- The seal ----------------------------------------------------------------------------------------------------


def digest_of(record_key: bytes, body: bytes) -> bytes:
    """The hash that a record of `body` under `record_key` ends in.

    Seeded with the key's length: without it, a key and a body could trade bytes and hash alike.
    """
    return xxh3_64_digest(record_key + body, len(record_key))


def seal(record_key: bytes, body: bytes) -> bytes:
    """The record to store for `body` under `record_key`."""
    return body + digest_of(record_key, body)


def unseal(record_key: bytes, record: bytes) -> bytes:
    """The body of a record. Raises: `Corruption` where the record is not what was written under this key."""
    body = record[:-HASH_BYTES]
    if not body or record[-HASH_BYTES:] != digest_of(record_key, body):
        raise damaged(record_key, record)
    return body


def hash_of(record: bytes) -> int:
    """What a record adds to a state hash: the hash that it ends in. Call it on records that were sealed or verified."""
    return int.from_bytes(record[-HASH_BYTES:], "big")


def damaged(record_key: bytes, record: bytes, why: str = "fails its checksum") -> Corruption:
    """The error for a record that is not what was written. The value is not shown: it may be anybody's data."""
    return Corruption(
        f"the record under {record_key[:80]!r} ({len(record)} bytes) of the live state {why}; this replica stops, "
        f"discards its live state and rebuilds it from checkpoint and log, or from its peers",
        metadata={"record_key": record_key.hex(), "record_bytes": str(len(record))},
    )


def newer(what: str, *, found: int, known: int) -> UnsupportedVersion:
    """The error for bytes that a newer release wrote."""
    return UnsupportedVersion(
        f"{what} has format version {found}, and this release knows versions up to {known}: it was written by a newer "
        f"release; upgrade this node",
        metadata={"found": str(found), "known": str(known)},
    )


# --- Records of keys ---------------------------------------------------------------------------------------------


def encode_record(record_key: bytes, entry: KeyEntry) -> bytes:
    """The record of a key. The key itself stands in `record_key` only; the hash binds the two."""
    assert not entry.lease, f"lease {entry.lease} is reserved"
    assert not entry.expiry_ms, f"expiry {entry.expiry_ms} is reserved"
    head = RECORD_HEAD.pack(RECORD_VERSION, 0, entry.create_revision, entry.mod_revision, entry.version)
    return seal(record_key, head + entry.value)


def decode_record(record_key: bytes, record: bytes) -> KeyEntry:
    """A key as stored. Raises: `Corruption` for a damaged record, `UnsupportedVersion` for one of a newer release."""
    body = unseal(record_key, record)
    if len(body) < RECORD_HEAD.size:
        raise damaged(record_key, record)
    version, flags, create_revision, mod_revision, writes = RECORD_HEAD.unpack_from(body)
    if version == RECORD_VERSION and not flags:
        return KeyEntry(
            record_key[DATA_PREFIX_BYTES:],
            body[RECORD_HEAD.size :],
            writes,
            create_revision,
            mod_revision,
        )
    if version > RECORD_VERSION:
        raise newer(f"the record under {record_key[:80]!r}", found=version, known=RECORD_VERSION)
    if version != RECORD_VERSION or flags != _RESERVED or len(record) < RECORD_BYTES_MIN + _RESERVED_PART.size:
        raise damaged(record_key, record, f"has version {version} and flags {flags:#x}, which no release wrote")
    lease, expiry_ms = _RESERVED_PART.unpack_from(body, RECORD_HEAD.size)
    value = body[RECORD_HEAD.size + _RESERVED_PART.size :]
    key = record_key[DATA_PREFIX_BYTES:]
    return KeyEntry(key, value, writes, create_revision, mod_revision, lease, expiry_ms)
