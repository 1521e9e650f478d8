"""Slots are those of Redis Cluster, for every key."""

import json
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from raftcache.kv.slots import SLOT_COUNT, slot_of

VECTORS = Path(__file__).parents[2] / "proto" / "slot_vectors.json"


def crc16_bit_by_bit(data: bytes) -> int:
    """CRC-16/XMODEM from its definition."""
    crc = 0
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1) ^ (0x1021 if crc & 0x8000 else 0)
            crc &= 0xFFFF
    return crc


def hashed_part(key: bytes) -> bytes:
    """The rule of the Redis Cluster specification, word for word."""
    for start, byte in enumerate(key):
        if byte == ord("{"):
            for end in range(start + 1, len(key)):
                if key[end] == ord("}"):
                    return key[start + 1 : end] if end != start + 1 else key
            return key
    return key


def test_crc_is_xmodem() -> None:
    """The check value of CRC-16/XMODEM is 0x31C3."""
    assert 0x31C3 % SLOT_COUNT == slot_of(b"123456789")


def test_published_vectors_hold() -> None:
    """Every vector beside the .proto is what the code computes, and its text is its bytes."""
    document = json.loads(VECTORS.read_text(encoding="utf-8"))
    assert document["slots"] == SLOT_COUNT
    assert len(document["vectors"]) >= 40
    for vector in document["vectors"]:
        key = bytes.fromhex(vector["key_hex"])
        assert vector["slot"] == slot_of(key), vector
        if "key" in vector:
            assert key == vector["key"].encode(), vector


def test_known_slots_of_redis_hold() -> None:
    """The slots that Redis' own CLUSTER KEYSLOT reports for well-known keys."""
    assert [12182, 5061, 866, 11058, 2515, 2515] == [
        slot_of(key) for key in (b"foo", b"bar", b"hello", b"somekey", b"foo{hash_tag}", b"bar{hash_tag}")
    ]


def test_empty_braces_are_no_tag() -> None:
    """Only the first pair of braces counts; if it is empty, the whole key is hashed, as in Redis."""
    assert slot_of(b"foo{}{bar}") == crc16_bit_by_bit(b"foo{}{bar}") % SLOT_COUNT
    assert slot_of(b"foo{{bar}}zap") == slot_of(b"{bar")
    assert slot_of(b"foo{bar}{zap}") == slot_of(b"bar")


@given(st.lists(st.sampled_from([b"{", b"}", b"a", b"b", b"\x00", b"\xff"]), max_size=12).map(b"".join))
@example(b"")
def test_slot_agrees_with_the_definition(key: bytes) -> None:
    """The fast computation equals the definition, braces in any arrangement."""
    assert crc16_bit_by_bit(hashed_part(key)) % SLOT_COUNT == slot_of(key)
