"""The few protobuf messages of etcd that the benchmark needs, written by hand, and gRPC's framing.

So no generated code of etcd has to be kept here. Field numbers are those of etcd's `rpc.proto` and `kv.proto` (3.4):

    PutRequest    key = 1, value = 2               RangeRequest  key = 1
    TxnRequest    success = 2 (RequestOp)          RequestOp     request_put = 2
    responses     header = 1                       ResponseHeader  revision = 3
    RangeResponse kvs = 2, count = 4               TxnResponse     succeeded = 2

Two wire types suffice: varints (0) and length-delimited bytes (2).
"""

from collections.abc import Iterator, Sequence

ETCD_PUT = "/etcdserverpb.KV/Put"
ETCD_RANGE = "/etcdserverpb.KV/Range"
ETCD_TXN = "/etcdserverpb.KV/Txn"

VARINT = 0
BYTES = 2


def varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first."""
    assert number >= 0, f"{number}: negative numbers are not needed here"
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def field(number: int, data: bytes) -> bytes:
    """One field of bytes, or of an encoded message."""
    return varint(number << 3 | BYTES) + varint(len(data)) + data


def etcd_put(key: bytes, value: bytes) -> bytes:
    """A `PutRequest`."""
    return field(1, key) + field(2, value)


def etcd_range(key: bytes) -> bytes:
    """A `RangeRequest` of one key; linearizable, which is its default."""
    return field(1, key)


def etcd_txn_of_puts(puts: Sequence[tuple[bytes, bytes]]) -> bytes:
    """A `TxnRequest` without comparisons: its puts run at one revision. etcd refuses a key that stands in it twice."""
    return b"".join(field(2, field(2, etcd_put(key, value))) for key, value in puts)


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message: number and value. Raises: `ValueError` on another wire type, or where it is cut off."""
    position = 0
    while position < len(message):
        tag, position = _read_varint(message, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == VARINT:
            value, position = _read_varint(message, position)
            yield number, value
        elif wire_type == BYTES:
            size, position = _read_varint(message, position)
            if position + size > len(message):
                raise ValueError(f"field {number} has {size} bytes, {len(message) - position} are there")
            yield number, message[position : position + size]
            position += size
        else:
            raise ValueError(f"wire type {wire_type} of field {number} is not known here")


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        if position >= len(message):
            raise ValueError("a varint is cut off")
        byte = message[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
        shift += 7


def number_of(message: bytes, *path: int) -> int:
    """The number at the end of a path of field numbers; 0 where a field is absent, as protobuf has it."""
    *inner, last = path
    for number in inner:
        found = dict(fields(message)).get(number, b"")
        assert isinstance(found, bytes), f"field {number} is no message"
        message = found
    value = dict(fields(message)).get(last, 0)
    assert isinstance(value, int), f"field {last} is no number"
    return value


def etcd_revision(response: bytes) -> int:
    """The cluster's revision when it answered; every write, be it a put or a transaction, adds one."""
    return number_of(response, 1, 3)


def framed(message: bytes) -> bytes:
    """A gRPC message on the wire: not compressed, length, data."""
    return b"\0" + len(message).to_bytes(4, "big") + message
