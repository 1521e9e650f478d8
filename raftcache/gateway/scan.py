"""`Scan`: one page of a key range, from one shard or merged from all.

Keys lie in slots by their hash, so every shard holds a part of every range. A merged page asks all shards for their next
entries and takes those below the *horizon*, the least key that some shard has not shown yet:

    shard 1:  a  d  f | more from g            horizon = g
    shard 2:  b  h    | end                    page    = a b d f, next page from g

Rules of this file:
- no common snapshot: each shard's part is read at its own moment (the interface says so);
- progress: a page ends the scan, or moves its start beyond the last entry shown. The shard that sets the horizon showed at
  least one entry below it;
- what is held at once is bounded: each shard is asked for its share of the page, twice over because keys do not spread
  evenly, and never for less than a floor;
- a page token names a place, no state: any node can go on with it. A count's token has one place for each unfinished
  shard, because a count shows no keys to merge by.

Caveat: which shards there are is this node's shard map's word. A map that is older than a split misses the new shard;
splits will have to make that shard's refusal known to scans.
"""

import struct
from collections.abc import Callable

from raftcache.edge.front import Call, Refusal
from raftcache.errors import InvalidRequest, RaftCacheError, Unavailable, WrongShard
from raftcache.gateway.decode import consistency_of
from raftcache.gateway.encode import failure_of, fill_entry, fill_header
from raftcache.gateway.errors import refusal_of
from raftcache.gateway.gateway import Gateway, parse, too_much_unfinished
from raftcache.ids import CATALOG_SHARD, ShardId
from raftcache.kv.limits import check_operation
from raftcache.kv.operations import KeyEntry, Scan, ScanResult
from raftcache.kv.slots import SHARD_WIDE
from raftcache.node.api import Reply, Request
from raftcache.v1 import kv_pb2

SHARE_ENTRIES_MIN = 16
SHARE_BYTES_MIN = 64 << 10
"""Below these a shard's share saves nothing: the round trip costs more."""

_PLACE = 1
_COUNT_PLACES = 2
_PLACE_HEAD = struct.Struct("<IH")  # shard, key bytes


class ScanCall:
    """One page in the making. Is the `ReplySink` of its own requests."""

    def __init__(self, gateway: Gateway, call: Call, answer: Callable[[Call, bytes | Refusal], None]) -> None:
        self._gateway = gateway
        self._call = call
        self._answer = answer
        self._request = kv_pb2.ScanRequest()
        self._asked = 0
        self._replies: list[Reply] = []
        self._held = 0
        """Bytes of keys and values in the pages that came while others are missing."""
        self._given_up = False
        """There was no room for them."""
        self._limit = 0
        self._bytes_max = 0

    def begin(self, now_ns: int) -> None:
        """Asks the shards. Raises: `InvalidRequest`, `Unavailable`, `DeadlineExpired`; all before anything was asked."""
        gateway, call = self._gateway, self._call
        request = self._request = parse(kv_pb2.ScanRequest.FromString, call.message)
        deadline_ns = gateway.deadline_of(call.deadline_ns, now_ns)
        limits = gateway.kv_limits
        self._limit = min(request.limit or limits.scan_entries_max, limits.scan_entries_max)
        self._bytes_max = min(request.bytes_max or limits.scan_bytes_max, limits.scan_bytes_max)
        places = self._places()
        entries_each = min(self._limit, max(SHARE_ENTRIES_MIN, -(-2 * self._limit // len(places))))
        bytes_each = min(self._bytes_max, max(SHARE_BYTES_MIN, 2 * self._bytes_max // len(places)))
        hi = request.hi or None
        gateway.authorizer.authorize(call.peer, call.method, (), (request.lo, hi))
        consistency = consistency_of(request.consistency)
        requests = []
        for shard, lo in places.items():
            scan = Scan(
                lo, hi, entries_each, bytes_each, request.keys_only, request.count_only, namespace=request.namespace
            )
            check_operation(scan, limits)
            requests.append(Request(shard, scan, SHARD_WIDE, deadline_ns, shard=shard, consistency=consistency))
        self._asked = len(requests)
        gateway.node.submit(requests, self)

    def deliver(self, replies: list[Reply]) -> None:
        """Takes the shards' pages; answers when all are there."""
        self._replies += replies
        if len(self._replies) < self._asked:
            self._hold(replies)
            return
        self._gateway.unfinished.bytes -= self._held
        for reply in self._replies:
            failure = failure_of(reply)
            if failure is not None:
                self._answer(self._call, refusal_of(failure, reply.shard))
                return
        self._answer(self._call, self._page())

    def _hold(self, replies: list[Reply]) -> None:
        """Counts what waits for other shards' pages. Where others hold too much, this scan lets go of all of its own, and fails."""
        unfinished, bytes_max = self._gateway.unfinished, self._gateway.settings.unfinished_bytes_max
        size = sum(_bytes_of(reply) for reply in replies)
        # One that is larger than the limit still passes when it is alone: a bound must not stop progress.
        others = unfinished.bytes - self._held
        if self._given_up or (others and unfinished.bytes + size > bytes_max):
            unfinished.bytes -= self._held
            self._held, self._given_up = 0, True
            refusal = too_much_unfinished("page", bytes_max)
            for reply in self._replies:
                if isinstance(reply.result, ScanResult):
                    reply.result = refusal
        else:
            unfinished.bytes += size
            self._held += size

    def _places(self) -> dict[ShardId, bytes]:
        """Which shards to ask, and from which key each."""
        request = self._request
        if request.HasField("shard"):
            shards = [client_shard(self._gateway, request.shard)]
        else:
            shards = [route.shard for route in self._gateway.routes.table().shards]
            if not shards:
                raise Unavailable("this node knows no shards: the cluster is not initialised, or it has not joined yet")
        if not request.page_token:
            return dict.fromkeys(shards, request.lo)
        kind, places = _decode_token(request.page_token)
        if (kind == _COUNT_PLACES) != request.count_only:
            raise _bad_token("it belongs to a scan with another `count_only`")
        if kind == _COUNT_PLACES:
            if request.HasField("shard") and list(places) != shards:
                raise _bad_token("it belongs to a scan of other shards")
            places = {client_shard(self._gateway, shard): lo for shard, lo in places.items()}
        else:
            places = dict.fromkeys(shards, places[CATALOG_SHARD])
        if any(lo < request.lo or (request.hi and lo >= request.hi) for lo in places.values()):
            raise _bad_token("it lies outside of the range")
        return places

    def _page(self) -> bytes:
        request, response = self._request, kv_pb2.ScanResponse()
        pages: list[tuple[ShardId, ScanResult]] = []
        for reply in sorted(self._replies, key=_shard_of):
            result = reply.result
            assert isinstance(result, ScanResult), f"a Scan was answered by {result}"
            fill_header(response.headers.add(), reply, result.revision, self._gateway.routes.hint)
            pages.append((_shard_of(reply), result))
        if request.count_only:
            response.count = sum(page.count for _, page in pages)
            response.next_page_token = _encode_token(
                _COUNT_PLACES, {shard: page.next_key for shard, page in pages if page.more}
            )
        else:
            entries, next_key = merge([page for _, page in pages], self._limit, self._bytes_max)
            for entry in entries:
                fill_entry(response.entries.add(), entry)
            response.count = len(entries)
            response.next_page_token = _encode_token(_PLACE, {CATALOG_SHARD: next_key} if next_key else {})
        return response.SerializeToString()


def merge(pages: list[ScanResult], limit: int, bytes_max: int) -> tuple[list[KeyEntry], bytes]:
    """The merged page, and the key that the next one starts at; empty at the end.

    At least one entry if there is any, then at most `limit`, and at most `bytes_max` of keys and values.
    """
    horizon = min((page.next_key for page in pages if page.more), default=None)
    entries = sorted((entry for page in pages for entry in page.entries), key=_key_of)
    size = 0
    for position, entry in enumerate(entries):
        if horizon is not None and entry.key >= horizon:
            return entries[:position], horizon
        size += len(entry.key) + len(entry.value)
        if position and (position >= limit or size > bytes_max):
            return entries[:position], entry.key
    return entries, horizon or b""


def client_shard(gateway: Gateway, number: int) -> ShardId:
    """The shard that a client names.

    Raises: `InvalidRequest` for the catalog, which holds no keys of clients; `WrongShard` for one that is not in this
    node's map: nobody would ever lead it, and the caller would wait for that.
    """
    if number == CATALOG_SHARD:
        raise InvalidRequest(
            f"shard {CATALOG_SHARD} is the catalog and holds no keys: ShardMap lists the shards that do",
            metadata={"field": "shard"},
        )
    table = gateway.routes.table()
    # Before `init` there are none; the node itself then says what to do.
    if table.shards and all(route.shard != number for route in table.shards):
        raise WrongShard(
            f"there is no shard {number} in the shard map of epoch {table.epoch}: ShardMap lists those there are",
            metadata={"shard": str(number)},
        )
    return ShardId(number)


def _encode_token(kind: int, places: dict[ShardId, bytes]) -> bytes:
    """One byte for the kind, then shard and key of each place. No place, no token."""
    if not places:
        return b""
    parts = [_PLACE_HEAD.pack(shard, len(key)) + key for shard, key in places.items()]
    return bytes([kind]) + b"".join(parts)


def _decode_token(token: bytes) -> tuple[int, dict[ShardId, bytes]]:
    places: dict[ShardId, bytes] = {}
    at = 1
    while at < len(token):
        if at + _PLACE_HEAD.size > len(token):
            raise _bad_token("it is cut short")
        shard, size = _PLACE_HEAD.unpack_from(token, at)
        at += _PLACE_HEAD.size + size
        if at > len(token):
            raise _bad_token("it is cut short")
        places[ShardId(shard)] = token[at - size : at]
    if (
        token[0] not in (_PLACE, _COUNT_PLACES)
        or not places
        or (token[0] == _PLACE) != (list(places) == [CATALOG_SHARD])
    ):
        raise _bad_token("it is not one that this release gives out")
    return token[0], places


def _bad_token(why: str) -> RaftCacheError:
    return InvalidRequest(
        f"the page token does not fit this scan: {why}. Repeat all fields of the first page's request with it",
        metadata={"field": "page_token"},
    )


def _bytes_of(reply: Reply) -> int:
    result = reply.result
    return sum(len(entry.key) + len(entry.value) for entry in result.entries) if isinstance(result, ScanResult) else 0


def _shard_of(reply: Reply) -> ShardId:
    assert isinstance(reply.token, int), f"the token of a scan came back as {reply.token!r}"
    return ShardId(reply.token)


def _key_of(entry: KeyEntry) -> bytes:
    return entry.key
