"""May this caller do this? One hook, which every call passes before anything of it reaches the node.

Users, roles and tokens are not in this release: `ALLOW_ALL` is the only implementation, and a port that is reachable
from elsewhere is protected by mutual TLS alone. The hook exists so that they can be added in one place.
"""

from collections.abc import Sequence
from typing import Protocol

from raftcache.edge.front import Peer


class Authorizer(Protocol):
    """Decides. Called on the hot path, on the loop: it neither blocks nor hashes passwords."""

    def authorize(
        self, peer: Peer, method: str, keys: Sequence[bytes], scanned: tuple[bytes, bytes | None] | None = None
    ) -> None:
        """Returns if `peer` may call `method` on all of `keys`, and read the range `scanned`, `[lo, hi)`.

        Raises: `Unauthenticated`, `PermissionDenied`.
        """
        ...


class AllowAll:
    """Everybody may do everything."""

    __slots__ = ()

    def authorize(
        self, peer: Peer, method: str, keys: Sequence[bytes], scanned: tuple[bytes, bytes | None] | None = None
    ) -> None:
        return


ALLOW_ALL = AllowAll()
