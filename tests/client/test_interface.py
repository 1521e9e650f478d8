"""The names, signatures and arguments that programs rely on; what an import costs; what shows and what does not."""

import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import raftcache
from raftcache import AsyncClient, Client, ops, when
from raftcache.client.async_pipeline import AsyncPipeline
from raftcache.client.keys import after_prefix, bounds_of, encode_key, encode_value
from raftcache.client.options import Tls, parse_endpoints
from raftcache.client.sync_pipeline import Pipeline
from raftcache.errors import ConfigError, InvalidRequest
from raftcache.v1 import types_pb2

SYNC_OF_ASYNC = {
    "AsyncIterator[Entry]": "Iterator[Entry]",
    "AsyncPipeline": "Pipeline",
    "asyncio.Future": "Future",
}


def public_methods(cls: type) -> dict[str, Any]:
    special = ("__init__", "__repr__")
    return {
        name: member
        for name, member in inspect.getmembers(cls, callable)
        if not name.startswith("_") or name in special
    }


@pytest.mark.parametrize(("of_threads", "of_asyncio"), [(Client, AsyncClient), (Pipeline, AsyncPipeline)])
def test_both_clients_have_the_same_methods_with_the_same_signatures(of_threads: type, of_asyncio: type) -> None:
    """A program moves from one to the other by `await` alone."""
    one, other = public_methods(of_threads), public_methods(of_asyncio)
    assert sorted(one) == sorted(other)
    for name, method in one.items():
        signature, twin = inspect.signature(method), inspect.signature(other[name])
        if of_threads is not Pipeline or name != "__init__":
            assert signature.parameters == twin.parameters, name
        expected = str(twin.return_annotation)
        for its, ours in SYNC_OF_ASYNC.items():
            expected = expected.replace(its, ours)
        found = str(signature.return_annotation)
        assert found.rpartition(".")[2] == expected.rpartition(".")[2], name


def test_everything_but_what_begins_something_is_awaited() -> None:
    """`scan` returns an iterator and `pipeline` a context manager, at once."""
    at_once = {name for name, method in public_methods(AsyncClient).items() if not inspect.iscoroutinefunction(method)}
    assert {"__init__", "__repr__", "from_env", "pipeline", "scan"} == at_once


CLIENT_ONLY = """
import sys

BLOCKED = {"lmdb", "crc32c", "structlog", "prometheus_client", "opentelemetry", "click", "rich", "uvloop", "cryptography",
           "grpc_health", "grpc_reflection"}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is not installed with the client alone")

sys.meta_path.insert(0, Blocker())
import raftcache
early = sorted({"grpc", "google.protobuf", "asyncio"} & set(sys.modules))
for name in raftcache.__all__:
    getattr(raftcache, name)
rc = raftcache.Client("127.0.0.1:1", timeout=0.2)
try:
    rc.get("k")
except raftcache.RaftCacheError as error:
    outcome = error.reason
import importlib.metadata, json, sysconfig, pathlib
stdlib = set(sys.stdlib_module_names) | set(sys.builtin_module_names)
tops = {name.partition(".")[0] for name in sys.modules} - stdlib
print(json.dumps({"early": early, "outcome": outcome, "tops": sorted(tops)}))
"""


def test_the_client_works_with_grpcio_and_protobuf_alone() -> None:
    """Whoever installs it without extras has nothing else; and importing the package itself costs nothing."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", CLIENT_ONLY], capture_output=True, text=True, check=False, timeout=60
    )
    assert 0 == run.returncode, run.stderr
    found = json.loads(run.stdout)
    assert [] == found["early"]
    assert "DEADLINE_EXCEEDED" == found["outcome"]
    # `sitecustomize` is the machine's own: Debian's Python brings one.
    ours = {"raftcache", "grpc", "google", "typing_extensions", "__main__", "sitecustomize", "usercustomize"}
    foreign = [top for top in found["tops"] if top not in ours and not top.startswith("_")]
    assert [] == [top for top in foreign if "cython" not in top.lower() and "editable" not in top], foreign


def test_the_stub_says_what_the_package_exports() -> None:
    """`__init__.py` imports by name; type checkers read `__init__.pyi`."""
    stub = ast.parse(Path(raftcache.__file__).with_suffix(".pyi").read_text())
    imported = {
        alias.asname or alias.name for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert set(raftcache.__all__) == imported | {"__version__"}
    for node in stub.body:
        if isinstance(node, ast.ImportFrom) and node.module != "raftcache.client":
            for alias in node.names:
                home = sys.modules.get(str(node.module)) or __import__(str(node.module), fromlist=["_"])
                assert getattr(raftcache, alias.name) is getattr(home, alias.name)
    assert set(raftcache.__all__) <= set(dir(raftcache))
    with pytest.raises(AttributeError, match="no attribute 'Cleint'"):
        raftcache.Cleint  # type: ignore[attr-defined] # noqa: B018


# --- Arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a:1,b:2", ("a:1", "b:2")),
        ("raftcache://a:1,b/", ("a:1", "b:7400")),
        (["a", "b:2", "a"], ("a:7400", "b:2")),
        (" [::1]:9 , [::1] ", ("[::1]:9", "[::1]:7400")),
        (("raftcache://a:1",), ("a:1",)),
    ],
)
def test_endpoints_are_written_in_many_ways(given: Any, expected: tuple[str, ...]) -> None:
    """A string, a URL, a list; with or without ports; each once."""
    assert expected == parse_endpoints(given)


@pytest.mark.parametrize("given", ["", [], "a:b", "a:0", "a:70000", "::1", ":7400", "raftcache://"])
def test_an_endpoint_that_is_none_is_refused_at_once(given: Any) -> None:
    """Not at the first call."""
    with pytest.raises(ConfigError):
        Client(given)


@pytest.mark.parametrize(
    "options", [{"routing": "best"}, {"consistency": "eventual"}, {"timeout": 0}, {"timeout": -1.0}]
)
def test_settings_that_are_none_are_refused_at_once(options: dict[str, Any]) -> None:
    """With the names of those that are."""
    for cls in (Client, AsyncClient):
        with pytest.raises(ConfigError):
            cls("a:1", **options)
    with pytest.raises(ConfigError), Client("a:1") as rc:
        rc.get("k", consistency="lease")  # type: ignore[arg-type]


def test_a_client_can_be_made_from_the_environment() -> None:
    """Endpoints, timeout, transport and TLS."""
    environ = {
        "RAFTCACHE_ENDPOINTS": "a:1,b:2",
        "RAFTCACHE_TIMEOUT": "1.5",
        "RAFTCACHE_TRANSPORT": "grpcio",
        "RAFTCACHE_CA": "ca.pem",
        "RAFTCACHE_CERT": "me.pem",
        "RAFTCACHE_KEY": "me.key",
    }
    for cls in (Client, AsyncClient):
        options = cls.from_env(environ)._options
        assert (("a:1", "b:2"), 1.5, "grpcio", Tls("ca.pem", "me.pem", "me.key")) == (
            options.endpoints,
            options.timeout,
            options.transport,
            options.tls,
        )
    bare = Client.from_env({"RAFTCACHE_ENDPOINTS": "a"})._options
    assert (None, "fast") == (bare.tls, bare.transport)
    for broken in (
        {},
        {"RAFTCACHE_ENDPOINTS": "a", "RAFTCACHE_TIMEOUT": "soon"},
        {"RAFTCACHE_ENDPOINTS": "a", "RAFTCACHE_TRANSPORT": "pigeons"},
        environ | {"RAFTCACHE_KEY": ""},
    ):
        with pytest.raises(ConfigError):
            Client.from_env(broken)


def test_nothing_secret_shows() -> None:
    """A client shows where it goes, and not by which key."""
    client = Client(["a:1", "b:2"], tls=Tls("ca.pem", "me.pem", "secret.key"))
    assert "<Client a:1,b:2, direct, tls>" == repr(client)
    assert "<AsyncClient a:1, gateway>" == repr(AsyncClient("a:1", routing="gateway"))
    assert "secret" not in repr(client._options)
    assert "v4lu3" not in repr(ops.put("k", b"v4lu3"))


def test_keys_may_be_text_and_values_may_not() -> None:
    """UTF-8 for keys is a rule; for values it would be a guess."""
    assert "schlüssel".encode() == encode_key("schlüssel") == encode_key(bytearray("schlüssel".encode()))  # type: ignore[arg-type]
    assert b"\0\xff" == encode_value(memoryview(b"\0\xff"))  # type: ignore[arg-type]
    for bad in (5, None):
        with pytest.raises(TypeError, match="a key is str or bytes"):
            encode_key(bad)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"value\.encode\(\)"):
        encode_value("text")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a value is bytes, not int"):
        ops.put("k", 5)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest):
        encode_key("")


@pytest.mark.parametrize(
    ("prefix", "end"), [(b"a", b"b"), (b"a\xff", b"b"), (b"\xff\xff", b""), (b"", b""), (b"a\xfe", b"a\xff")]
)
def test_a_prefix_ends_where_its_keys_end(prefix: bytes, end: bytes) -> None:
    """Also where the last byte cannot be raised."""
    assert end == after_prefix(prefix)
    assert (prefix, end) == bounds_of(prefix, None, None)


def test_a_range_is_given_in_one_way() -> None:
    """A prefix, or two bounds, either of which may be open."""
    assert (b"a", b"") == bounds_of(None, "a", None)
    assert (b"", b"z") == bounds_of(None, None, b"z")
    with pytest.raises(TypeError):
        bounds_of("p", "a", None)


def test_conditions_are_written_as_comparisons() -> None:
    """Each form, and what it is on the wire."""
    written = [
        when.exists("k"),
        when.absent("k"),
        when.version("k") == 3,
        when.version("k") != 3,
        when.revision("k") > 4,
        when.create_revision("k") < 5,
        when.value("k") == b"v",
        when.value("k") > b"",
    ]
    sent = ops.txn(written, [ops.put("k", b"v")]).message.conditions
    one = types_pb2.Condition
    assert [
        one(key=b"k", comparison=types_pb2.COMPARISON_EQUAL, exists=True),
        one(key=b"k", comparison=types_pb2.COMPARISON_EQUAL, exists=False),
        one(key=b"k", comparison=types_pb2.COMPARISON_EQUAL, version=3),
        one(key=b"k", comparison=types_pb2.COMPARISON_NOT_EQUAL, version=3),
        one(key=b"k", comparison=types_pb2.COMPARISON_GREATER, mod_revision=4),
        one(key=b"k", comparison=types_pb2.COMPARISON_LESS, create_revision=5),
        one(key=b"k", comparison=types_pb2.COMPARISON_EQUAL, value=b"v"),
        one(key=b"k", comparison=types_pb2.COMPARISON_GREATER, value=b""),
    ] == list(sent)


def test_results_are_frozen_and_small() -> None:
    """They are passed around and kept."""
    for name in ("Entry", "PutResult", "DeleteResult", "CasResult", "TxnResult", "ShardMap", "Pong"):
        cls = getattr(raftcache, name)
        assert cls.__dataclass_params__.frozen, name
        assert "__slots__" in vars(cls), name
