"""HPACK against the examples of RFC 7541, appendix C."""

import pytest

from benchmarks.hpack import STATIC_TABLE, decode_block, huffman_decode, request_blocks


@pytest.mark.parametrize(
    ("coded", "text"),
    [
        ("f1e3c2e5f23a6ba0ab90f4ff", "www.example.com"),
        ("a8eb10649cbf", "no-cache"),
        ("25a849e95ba97d7f", "custom-key"),
        ("25a849e95bb8e8b4bf", "custom-value"),
        ("6402", "302"),
        ("d07abe941054d444a8200595040b8166e082a62d1bff", "Mon, 21 Oct 2013 20:13:21 GMT"),
        ("9d29ad171863c78f0b97c8e9ae82ae43d3", "https://www.example.com"),
        ("9bd9ab", "gzip"),
        (
            "94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
            "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
        ),
    ],
)
def test_huffman_strings_of_the_rfc_are_read(coded: str, text: str) -> None:
    """Appendices C.4 and C.6."""
    assert text == huffman_decode(bytes.fromhex(coded))


@pytest.mark.parametrize("coded", ["ffff", "ffffffff", "18"])
def test_what_is_no_huffman_string_is_refused(coded: str) -> None:
    """Too much padding, the end-of-string symbol, padding of zeros."""
    with pytest.raises(ValueError):
        huffman_decode(bytes.fromhex(coded))


def test_the_static_table_has_its_known_places() -> None:
    """Those that a gRPC answer uses, and the last."""
    assert (":status", "200") == STATIC_TABLE[8 - 1]
    assert "content-type" == STATIC_TABLE[31 - 1][0]
    assert ("www-authenticate", "") == STATIC_TABLE[61 - 1]
    assert 61 == len(STATIC_TABLE)


def test_an_answer_of_a_go_server_is_read() -> None:
    """Both blocks of a call as etcd sends them: the size of our table, indexed and literal fields, Huffman names."""
    first = bytes.fromhex("20880f108b1d75d0620d263d4c4d6564")
    last = bytes.fromhex("00889acac8b21234da8f013000899acac8b5254207317f00")
    assert [(":status", "200"), ("content-type", "application/grpc")] == decode_block(first)
    assert [("grpc-status", "0"), ("grpc-message", "")] == decode_block(last)


@pytest.mark.parametrize("block", ["be", "3fe11f", "40"])
def test_a_block_that_needs_a_table_or_is_cut_off_is_refused(block: str) -> None:
    """An index beyond the static table, a table of 4,096 bytes, a literal without its name."""
    with pytest.raises((ValueError, IndexError)):
        decode_block(bytes.fromhex(block))


def test_a_request_names_itself_once_and_then_by_index() -> None:
    """The second block is six bytes: two of the static table, four of what the first one added."""
    first, later = request_blocks("127.0.0.1:7400", "/raftcache.v1.KvService/Put")
    assert [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/raftcache.v1.KvService/Put"),
        (":authority", "127.0.0.1:7400"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] == decode_block(first)
    assert bytes((0x83, 0x86, 0x80 | 65, 0x80 | 64, 0x80 | 63, 0x80 | 62)) == later
