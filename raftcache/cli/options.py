"""The options that many commands share: where the cluster is, how long to wait, what a key is.

Rules of this file:
- an option that names the cluster has an environment variable, `RAFTCACHE_` and one underscore between words. (Those with
  two underscores are a node's settings, see `config.load`.) They are those that `Client.from_env` reads;
- a duration on the command line is a number with a unit, `500ms`, `10s`, `2m`; a bare number is seconds.
"""

import base64
import binascii
import functools
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from raftcache.client.options import Tls

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

TIMEOUT = "10s"
"""Two elections and what a slow disk adds to them: a command that is typed during a failover succeeds."""
DURATION_SECONDS_MAX = 24 * 3600.0
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(ms|s|m|h|)")


def duration(value: str | float) -> float:
    """`500ms`, `10s`, `2m`, as seconds. Raises: `BadParameter`."""
    if isinstance(value, float):
        return value
    match = _DURATION.fullmatch(value.strip())
    seconds = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not 0 < seconds <= DURATION_SECONDS_MAX:
        raise click.BadParameter(f"{value!r} is not a duration; write 500ms, 10s or 2m (more than 0, at most 24h)")
    return seconds


def base64_bytes(value: str | bytes) -> bytes:
    """Bytes in base64. Raises: `BadParameter`."""
    if isinstance(value, bytes):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise click.BadParameter(f"{value!r} is not base64; `printf '\\x01' | base64` makes it") from error


def text_bytes(value: str | bytes) -> bytes:
    """Text, as its bytes in UTF-8. The root command has refused what is no text."""
    return value if isinstance(value, bytes) else value.encode()


# --- Which cluster ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Target:
    """The cluster that a command talks to."""

    endpoints: tuple[str, ...]
    found_by: str
    """Where the endpoints come from, for error messages."""
    timeout: float
    """Seconds for the command as a whole."""
    tls: "Tls | None" = None


def patient(ctx: click.Context, target: Target, seconds: float) -> Target:
    """The target with a longer timeout, unless one was given: for what creates things on several disks."""
    if ctx.get_parameter_source("timeout") is ParameterSource.DEFAULT:
        return replace(target, timeout=seconds)
    return target


def target_options(function: Decorated) -> Decorated:
    """Adds what names the cluster, as the parameter `target`."""

    @functools.wraps(function)
    def run(
        *args: Any,
        endpoints: str | None,
        timeout: float,
        tls_ca: str | None,
        tls_cert: str | None,
        tls_key: str | None,
        **options: Any,
    ) -> Any:
        from raftcache.cli.endpoints import find_endpoints

        found, found_by = find_endpoints(endpoints)
        tls = _client_tls(tls_ca, tls_cert, tls_key)
        return function(*args, target=Target(found, found_by, timeout, tls), **options)

    path = click.Path(dir_okay=False)
    decorators = (
        click.option(
            "--endpoints",
            "--endpoint",
            envvar="RAFTCACHE_ENDPOINTS",
            metavar="HOST:PORT,...",
            help="Client addresses of nodes, any of them. Without it, the cluster that `raftcache dev` runs here, "
            "else 127.0.0.1:7400.  [env: RAFTCACHE_ENDPOINTS]",
        ),
        click.option(
            "--timeout",
            type=duration,
            metavar="DURATION",
            default=TIMEOUT,
            show_default=True,
            help="Give up after this time.",
        ),
        click.option(
            "--tls-ca",
            type=path,
            envvar="RAFTCACHE_CA",
            help="Use TLS, and trust nodes whose certificate this authority signed.  [env: RAFTCACHE_CA]",
        ),
        click.option(
            "--tls-cert",
            type=path,
            envvar="RAFTCACHE_CERT",
            help="Our certificate, where nodes ask for one.  [env: RAFTCACHE_CERT]",
        ),
        click.option("--tls-key", type=path, envvar="RAFTCACHE_KEY", help="Its private key.  [env: RAFTCACHE_KEY]"),
    )
    decorated: Any = run
    for decorator in reversed(decorators):
        decorated = decorator(decorated)
    result: Decorated = decorated
    return result


def _client_tls(authority: str | None, certificate: str | None, key: str | None) -> "Tls | None":
    if (certificate is None) != (key is None):
        raise click.UsageError("--tls-cert and --tls-key go together; only one of them is given")
    if authority is None:
        if certificate is not None:
            raise click.UsageError("--tls-cert needs --tls-ca, the authority of the nodes' certificates")
        return None
    from raftcache.client.options import Tls

    return Tls(authority, certificate, key)


# --- Keys and values ----------------------------------------------------------------------------------------------


class TextCommand(click.Command):
    """A command whose arguments are any text, which may begin with a dash."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            message = f"{error.message} If it is a key or a value, write -- before it."
            raise click.NoSuchOption(error.option_name, message, error.possibilities, ctx) from None


def key_option(function: Decorated) -> Decorated:
    """Adds `--key-b64`, as the parameter `key_b64`."""
    return click.option(
        "--key-b64",
        type=base64_bytes,
        metavar="BASE64",
        help="The key in base64, in place of KEY, where it is no text.",
    )(function)


def take_key(words: list[str], key_b64: bytes | None) -> bytes:
    """The key: `--key-b64`, else the first of `words`, which is taken away. Raises: `UsageError`."""
    if key_b64 is not None:
        key = key_b64
    elif words:
        key = text_bytes(words.pop(0))
    else:
        raise click.UsageError("Missing argument 'KEY'.")
    if not key:
        raise click.UsageError("the key is empty; keys have at least one byte")
    return key


def no_more(words: list[str]) -> None:
    """Raises: `UsageError` where arguments are left over."""
    if words:
        raise click.UsageError(f"Got unexpected extra argument {words[0]!r}; put quotes around text with spaces.")


def read_file(path: Path) -> bytes:
    """A file's bytes, or standard input's for `-`. Raises: `UsageError`."""
    if str(path) == "-":
        return sys.stdin.buffer.read()
    try:
        return path.read_bytes()
    except OSError as error:
        raise click.UsageError(f"{path} cannot be read: {error.strerror}") from error
