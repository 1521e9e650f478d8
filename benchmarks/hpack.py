"""HPACK (RFC 7541), as much as a load generator needs.

The client tells its server to keep no table (SETTINGS_HEADER_TABLE_SIZE 0), so every header block can be read on its own and
equal blocks mean the same: the caller reads each distinct block once and remembers the answer. Nothing here needs to be quick.

What is sent is two constant blocks: the first request's, which puts four fields into the server's table, and all later ones',
which name them by their index, as any gRPC client does.
"""

_STATIC_TABLE = (
    ":authority :method=GET :method=POST :path=/ :path=/index.html :scheme=http :scheme=https :status=200 :status=204 "
    ":status=206 :status=304 :status=400 :status=404 :status=500 accept-charset accept-encoding=gzip,deflate "
    "accept-language accept-ranges accept access-control-allow-origin age allow authorization cache-control "
    "content-disposition content-encoding content-language content-length content-location content-range content-type "
    "cookie date etag expect expires from host if-match if-modified-since if-none-match if-range if-unmodified-since "
    "last-modified link location max-forwards proxy-authenticate proxy-authorization range referer refresh retry-after "
    "server set-cookie strict-transport-security transfer-encoding user-agent vary via www-authenticate"
)
STATIC_TABLE = tuple((name, value) for name, _, value in (entry.partition("=") for entry in _STATIC_TABLE.split()))
"""Appendix A; the first entry has index 1. One value is shorter here: the real one is `gzip, deflate`."""

_HUFFMAN_LENGTHS = bytes.fromhex(
    "0d171c1c1c1c1c1c1c181e1c1c1e1c1c1c1c1c1c1c1c1e1c1c1c1c1c1c1c1c1c060a0a0c0d06080b0a0a080b08060606050505060606060606"
    "0607080f060c0a0d06070707070707070707070707070707070707070707070807080d130d0e060f0506050605060606050707060606050607"
    "0605050607070707070f0b0e0d1c14161414161616171617171717171817181816171817171717151617161717181615141616171715171616"
    "1815161717151516151716171714161616171616171a1a1413161716191a1a1a1b1b1a181913151a1b1b1a1b1815151a1a1c1b1b1b14181415"
    "161515171616191918181a171a1b1a1a1b1b1b1b1b1c1b1b1b1b1b1a1e"
)
"""Appendix B: the bits of each symbol's code, 0 to 255 and the end of the string. The code is canonical, so these tell it."""

END_OF_STRING = 256


def _huffman_codes() -> dict[tuple[int, int], int]:
    """Symbols by the length and the bits of their code."""
    assert len(_HUFFMAN_LENGTHS) == END_OF_STRING + 1, f"{len(_HUFFMAN_LENGTHS)} lengths"
    codes: dict[tuple[int, int], int] = {}
    code = length = 0
    for symbol in sorted(range(len(_HUFFMAN_LENGTHS)), key=lambda s: (_HUFFMAN_LENGTHS[s], s)):
        code <<= _HUFFMAN_LENGTHS[symbol] - length
        length = _HUFFMAN_LENGTHS[symbol]
        codes[length, code] = symbol
        code += 1
    return codes


_HUFFMAN = _huffman_codes()


def huffman_decode(data: bytes) -> str:
    """The string that `data` codes. Raises: `ValueError` where it is no such string."""
    decoded = bytearray()
    code = length = 0
    for byte in data:
        for bit in range(7, -1, -1):
            code = code << 1 | (byte >> bit & 1)
            length += 1
            symbol = _HUFFMAN.get((length, code))
            if symbol is None:
                continue
            if symbol == END_OF_STRING:
                raise ValueError("the end-of-string symbol stands inside a string")
            decoded.append(symbol)
            code = length = 0
    # RFC 7541 section 5.2: what fills the last byte is the beginning of the end-of-string code, all ones.
    if length > 7 or code != (1 << length) - 1:
        raise ValueError(f"{length} bits are left over that are no padding")
    return decoded.decode("latin-1")


def decode_block(block: bytes) -> list[tuple[str, str]]:
    """The fields of a block that uses no dynamic table. Raises: `ValueError` where it does."""
    found: list[tuple[str, str]] = []
    position = 0
    while position < len(block):
        first = block[position]
        if first & 0x80:
            index, position = _integer(block, position, 7)
            found.append(_static(index))
        elif first & 0xE0 == 0x20:
            # The server obeys our SETTINGS and says so.
            size, position = _integer(block, position, 5)
            if size:
                raise ValueError(f"the server uses a table of {size} bytes; it was told to use none")
        else:
            # 01: to be added to the table, which has no room. 0000, 0001: not to be added. All are literals.
            index, position = _integer(block, position, 6 if first & 0x40 else 4)
            if index:
                name = _static(index)[0]
            else:
                name, position = _string(block, position)
            value, position = _string(block, position)
            found.append((name, value))
    return found


def _static(index: int) -> tuple[str, str]:
    if not 1 <= index <= len(STATIC_TABLE):
        raise ValueError(f"index {index} is beyond the static table")
    return STATIC_TABLE[index - 1]


def _integer(block: bytes, position: int, prefix_bits: int) -> tuple[int, int]:
    """RFC 7541 section 5.1."""
    largest = (1 << prefix_bits) - 1
    number = block[position] & largest
    position += 1
    if number < largest:
        return number, position
    shift = 0
    while True:
        byte = block[position]
        position += 1
        number += (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return number, position


def _string(block: bytes, position: int) -> tuple[str, int]:
    huffman = block[position] & 0x80
    size, position = _integer(block, position, 7)
    data = block[position : position + size]
    if len(data) < size:
        raise ValueError(f"a string of {size} bytes is cut off after {len(data)}")
    return (huffman_decode(data) if huffman else data.decode("latin-1")), position + size


METHOD_POST = 0x83
SCHEME_HTTP = 0x86
AUTHORITY, PATH, CONTENT_TYPE = 1, 4, 31
FIRST_DYNAMIC = len(STATIC_TABLE) + 1


def request_blocks(authority: str, path: str) -> tuple[bytes, bytes]:
    """The header block of the first gRPC request on a connection, and of all that follow it."""
    start = bytes((METHOD_POST, SCHEME_HTTP))
    first = (
        start
        + _added(PATH, path)
        + _added(AUTHORITY, authority)
        + _added(CONTENT_TYPE, "application/grpc")
        + b"\x40"
        + _literal("te")
        + _literal("trailers")
    )
    # The latest addition has the lowest index.
    return first, start + bytes(0x80 | FIRST_DYNAMIC + age for age in (3, 2, 1, 0))


def _added(name_index: int, value: str) -> bytes:
    assert name_index < 63, "would need a second byte"
    return bytes((0x40 | name_index,)) + _literal(value)


def _literal(text: str) -> bytes:
    assert len(text) < 127, f"{text}: would need a second byte of length"
    return bytes((len(text),)) + text.encode("ascii")
