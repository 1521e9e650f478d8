"""The hand-written messages of etcd, against bytes made by protoc's encoding rules and against their own reader."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.messages import (
    etcd_put,
    etcd_range,
    etcd_revision,
    etcd_txn_of_puts,
    fields,
    framed,
    number_of,
    varint,
)
from raftcache.v1 import kv_pb2


def test_a_put_has_key_and_value_as_fields_one_and_two() -> None:
    """The bytes that protobuf prescribes, written out."""
    assert b"\x0a\x01k\x12\x02vw" == etcd_put(b"k", b"vw")


def test_a_range_of_one_key_has_its_key_as_field_one() -> None:
    """Our own Get has its key there too, so generated code must read it."""
    assert b"key" == kv_pb2.GetRequest.FromString(etcd_range(b"key")).key


@given(st.binary(min_size=1, max_size=300), st.binary(max_size=300))
def test_a_put_is_read_by_generated_code(key: bytes, value: bytes) -> None:
    """Our PutRequest has key and value in the same fields; lengths beyond one byte included."""
    message = kv_pb2.PutRequest.FromString(etcd_put(key, value))
    assert (key, value) == (message.key, message.value)


def test_a_transaction_puts_each_pair_on_success() -> None:
    """success = 2 holds RequestOps whose request_put = 2."""
    message = etcd_txn_of_puts([(b"a", b"1"), (b"b", b"2")])
    operations = [value for number, value in fields(message) if number == 2]
    assert [[(2, etcd_put(b"a", b"1"))], [(2, etcd_put(b"b", b"2"))]] == [
        list(fields(operation)) for operation in operations if isinstance(operation, bytes)
    ]


@given(st.integers(min_value=0, max_value=(1 << 64) - 1))
def test_varints_come_back(number: int) -> None:
    """As a field of a message, where the reader finds them."""
    assert [(1, number)] == list(fields(b"\x08" + varint(number)))


def test_the_revision_is_in_the_header() -> None:
    """A header with all four numbers, as etcd sends it."""
    header = b"\x08\x7b\x10\x7c\x18\xac\x02\x20\x05"
    assert 300 == etcd_revision(b"\x0a" + varint(len(header)) + header)


def test_an_absent_number_is_zero() -> None:
    """Protobuf leaves zeros out, and with them whole messages."""
    assert 0 == number_of(b"", 1, 3)


@pytest.mark.parametrize("message", [b"\x0a\x05abc", b"\x08", b"\x08\x80", b"\x0d\x01\x02\x03\x04"])
def test_what_is_cut_off_or_unknown_is_refused(message: bytes) -> None:
    """A length beyond the end, a tag without a value, half a varint, a fixed32."""
    with pytest.raises(ValueError):
        list(fields(message))


def test_a_frame_has_five_bytes_before_the_message() -> None:
    """Not compressed, four bytes of length."""
    assert b"\x00\x00\x00\x00\x03abc" == framed(b"abc")
