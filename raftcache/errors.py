"""Every error that raftcache reports, and what its receiver may conclude from it.

Rules of this file:
- `definite` is true only where the request certainly had no effect and never will. When in doubt, indefinite.
- `retryable` says that the same request, sent again later (perhaps elsewhere), may succeed.
- `reason` is the stable, machine-readable name; it travels as `ErrorInfo.reason`. Messages may change, reasons do not.
- `metadata` are further facts for a machine (shard, leader, limit ...); all values are strings.

The table in `docs/errors.md` is checked against these classes by a test.
"""

from typing import ClassVar


class RaftCacheError(Exception):
    """The root of every operating error. Raises nothing itself; carries `reason`, `definite` and `metadata`."""

    reason: ClassVar[str] = "INTERNAL"
    definite: ClassVar[bool] = False
    retryable: ClassVar[bool] = False

    # Facts that the client library adds to what it raises; the server leaves them alone.
    shard: int | None = None
    """The shard concerned, if known."""
    node: str = ""
    """The address that was asked last; empty if none was."""
    attempts: int = 0
    """How often it was sent; 0: not even once."""
    elapsed: float = 0.0
    """Seconds from the call to this error."""

    def __init__(self, message: str, *, metadata: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.metadata: dict[str, str] = metadata or {}


ANSWER_DROPPED = {"answer": "dropped"}
"""Metadata of the unknown outcome of a request that another node carried out, and whose answer it dropped."""

# --- Bad input: refused before anything is proposed -------------------------------------------------------------


class InvalidRequest(RaftCacheError):
    """The request can never succeed as it stands; the message says what to change."""

    reason = "INVALID_REQUEST"
    definite = True


class KeyTooLong(InvalidRequest):
    """The key is longer than `limits.key_bytes_max`."""

    reason = "KEY_TOO_LONG"


class ValueTooLarge(InvalidRequest):
    """The value is larger than `limits.value_bytes_max`."""

    reason = "VALUE_TOO_LARGE"


class BatchTooLarge(InvalidRequest):
    """The batch has more operations or bytes than `limits.batch_operations_max` / `limits.batch_bytes_max`."""

    reason = "BATCH_TOO_LARGE"


class CrossSlot(InvalidRequest):
    """The keys of one transaction lie in more than one slot; the message names them and explains `{tags}`."""

    reason = "CROSS_SLOT"


class UnsupportedVersion(RaftCacheError):
    """A file, message or command was written by a newer release; the message names both versions."""

    reason = "UNSUPPORTED_VERSION"
    definite = True


class ConfigError(RaftCacheError):
    """A setting is unknown or out of range; the message names it and suggests the near one."""

    reason = "CONFIG"
    definite = True


# --- Operating: refused before the proposal ---------------------------------------------------------------------


class NotLeader(RaftCacheError):
    """This replica does not lead its shard and proposed nothing. `metadata["leader_address"]` is the hint, if known."""

    reason = "NOT_LEADER"
    definite = True
    retryable = True


class WrongShard(RaftCacheError):
    """The shard does not own the slot (any more). The caller's shard map is old; nothing was applied."""

    reason = "WRONG_SHARD"
    definite = True
    retryable = True


class Unavailable(RaftCacheError):
    """No leader is known or reachable, or the node is shutting down; nothing was proposed."""

    reason = "UNAVAILABLE"
    definite = True
    retryable = True


class Overloaded(RaftCacheError):
    """A named limit (in-flight requests, uncommitted bytes, connections) is reached; nothing was proposed."""

    reason = "OVERLOADED"
    definite = True
    retryable = True


class DeadlineExpired(RaftCacheError):
    """The deadline passed before the request was proposed; nothing was proposed."""

    reason = "DEADLINE_EXPIRED"
    definite = True


class SessionExpired(RaftCacheError):
    """The session is unknown to the shard (expired, evicted or never opened).

    Definite for a first attempt. For a retry, whether the *earlier* attempt was applied stays unknown.
    """

    reason = "SESSION_EXPIRED"
    definite = True


class SessionWindow(RaftCacheError):
    """The sequence number is below `first_unacked`, or beyond the window; nothing was applied."""

    reason = "SESSION_WINDOW"
    definite = True


class PreconditionFailed(RaftCacheError):
    """An administrative request was refused by a safety check; the message says why, with the failure tolerance."""

    reason = "PRECONDITION_FAILED"
    definite = True


class Unauthenticated(RaftCacheError):
    """The caller did not prove who it is."""

    reason = "UNAUTHENTICATED"
    definite = True


class PermissionDenied(RaftCacheError):
    """The caller may not do this."""

    reason = "PERMISSION_DENIED"
    definite = True


# --- Operating: the outcome is unknown --------------------------------------------------------------------------


class OutcomeUnknown(RaftCacheError):
    """The command was proposed and its fate is not known: it may be applied later, or never.

    Retry only under a session, with the same sequence number.
    """

    reason = "OUTCOME_UNKNOWN"
    definite = False


# --- The node itself --------------------------------------------------------------------------------------------


class Corruption(RaftCacheError):
    """Bytes on disk are not what was written; the message names the file, the offset and what to do."""

    reason = "CORRUPTION"
    definite = False


class StorageFull(RaftCacheError):
    """The disk, or the room for a shard's state, is full; nothing was proposed."""

    reason = "STORAGE_FULL"
    definite = True
    retryable = True


class IdentityMismatch(RaftCacheError):
    """A data directory, peer or message belongs to another cluster, node or incarnation; the message names both."""

    reason = "IDENTITY_MISMATCH"
    definite = True


class ProtocolError(RaftCacheError):
    """A peer sent bytes that are damaged or not our protocol; the connection is closed. The message says what is wrong."""

    reason = "PROTOCOL"
    definite = False


class DataDirectoryInUse(RaftCacheError):
    """Another process holds the lock on the data directory."""

    reason = "DATA_DIRECTORY_IN_USE"
    definite = True


def error_classes() -> dict[str, type[RaftCacheError]]:
    """Every class of this file by its `reason`: what can come over a wire. Subclasses elsewhere never leave their process."""
    found: dict[str, type[RaftCacheError]] = {}
    pending: list[type[RaftCacheError]] = [RaftCacheError]
    while pending:
        cls = pending.pop()
        if cls.__module__ == __name__:
            found[cls.reason] = cls
        pending.extend(cls.__subclasses__())
    return found


def error_of(reason: str, message: str, metadata: dict[str, str] | None = None) -> RaftCacheError:
    """The error that `reason` names, as it came over a wire; an unknown reason is the indefinite root class."""
    return error_classes().get(reason, RaftCacheError)(message, metadata=metadata)
