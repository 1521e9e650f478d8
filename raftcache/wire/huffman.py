"""The Huffman code of HPACK (RFC 7541 §5.2 and appendix B).

Rules of this file:
- the code is canonical: codes of one length are consecutive, in the order of their symbols. So the lengths alone
  define it, and the codes are computed;
- decoding goes byte by byte through the code's tree. What one byte does at one node is worked out when it is first met
  and then kept, so a string costs one look-up per byte.

Caveat: the kept steps are bounded by 256 nodes times 256 bytes, some 15 MB for the whole process, if somebody cares to
send all of them. Ordinary traffic meets a few hundred.
"""

from typing import Final

from raftcache.wire.http2_errors import HpackError

_LENGTHS: Final = bytes.fromhex(
    "0d171c1c1c1c1c1c1c181e1c1c1e1c1c1c1c1c1c1c1c1e1c1c1c1c1c1c1c1c1c"
    "060a0a0c0d06080b0a0a080b080606060505050606060606060607080f060c0a"
    "0d06070707070707070707070707070707070707070707070807080d130d0e06"
    "0f05060506050606060507070606060506070605050607070707070f0b0e0d1c"
    "1416141416161617161717171717181718181617181717171715161716171718"
    "1615141616171715171616181516171715151615171617171416161617161617"
    "1a1a1413161716191a1a1a1b1b1a181913151a1b1b1a1b1815151a1a1c1b1b1b"
    "14181415161515171616191918181a171a1b1a1a1b1b1b1b1b1c1b1b1b1b1b1a"
    "1e"
)
"""Length of each symbol's code in bits; the last symbol is EOS."""
_EOS: Final = 256
_PADDING_BITS_MAX: Final = 7


def _codes() -> list[str]:
    """The code of each symbol, as text of 0 and 1."""
    codes = [""] * len(_LENGTHS)
    code, previous = 0, 0
    for symbol in sorted(range(len(_LENGTHS)), key=lambda symbol: (_LENGTHS[symbol], symbol)):
        code <<= _LENGTHS[symbol] - previous
        previous = _LENGTHS[symbol]
        codes[symbol] = format(code, f"0{previous}b")
        code += 1
    return codes


_CODES: Final = _codes()


def _tree() -> list[list[int]]:
    """The inner nodes, root first. A branch is the number of the next node, or ~symbol."""
    nodes: list[list[int]] = [[0, 0]]
    for symbol, code in enumerate(_CODES):
        node = 0
        for bit in code[:-1]:
            branch = nodes[node][int(bit)]
            if not branch:
                branch = len(nodes)
                nodes.append([0, 0])
                nodes[node][int(bit)] = branch
            node = branch
        nodes[node][int(code[-1])] = ~symbol
    return nodes


_TREE: Final = _tree()


def _padding_nodes() -> frozenset[int]:
    """Where a string may end: at the root, or after at most seven bits of EOS, which is all ones (§5.2)."""
    nodes, node = [0], 0
    for _ in range(_PADDING_BITS_MAX):
        node = _TREE[node][1]
        nodes.append(node)
    return frozenset(nodes)


_PADDING_NODES: Final = _padding_nodes()

_steps: dict[int, tuple[int, bytes]] = {}
"""node << 8 | byte -> the next node << 8, and the symbols that the byte completed."""


def _step(key: int) -> tuple[int, bytes]:
    node, byte = key >> 8, key & 0xFF
    symbols = bytearray()
    for shift in range(7, -1, -1):
        branch = _TREE[node][byte >> shift & 1]
        if branch >= 0:
            node = branch
        elif branch == ~_EOS:
            raise HpackError("a Huffman string contains EOS")
        else:
            symbols.append(~branch)
            node = 0
    step = (node << 8, bytes(symbols))
    _steps[key] = step
    return step


_strings: dict[bytes, bytes] = {}
"""Short strings that were met lately: timeouts and the like come again and again."""
_STRINGS_MAX: Final = 1_024
_STRING_BYTES_MAX: Final = 32


def decode(data: bytes) -> bytes:
    """The string that `data` encodes. Raises: `HpackError`."""
    known = _strings.get(data)
    if known is not None:
        return known
    node = 0
    parts = []
    for byte in data:
        key = node | byte
        node, symbols = _steps.get(key) or _step(key)
        parts.append(symbols)
    if node >> 8 not in _PADDING_NODES:
        raise HpackError("a Huffman string is padded with something else than the first bits of EOS")
    string = b"".join(parts)
    if len(data) <= _STRING_BYTES_MAX:
        if len(_strings) >= _STRINGS_MAX:
            _strings.clear()
        _strings[data] = string
    return string


def encode(data: bytes) -> bytes:
    """`data` in the Huffman code, padded with ones."""
    bits = "".join([_CODES[byte] for byte in data])
    if not bits:
        return b""
    bits += "1" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")
