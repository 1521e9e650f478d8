#!/bin/sh
# Generates the committed Python code from the .proto files, or checks that it is what they say.
#
#   proto/generate.sh            write raftcache/v1 and raftcache/admin/v1
#   proto/generate.sh --check    write elsewhere, compare, and lint; fails on any difference
#
# The generator is pinned and lives in an environment of its own (.venv-proto): code from a newer one would refuse the
# protobuf 6 runtime that clients may have, and its runtime differs from the server's. PYTHON names the interpreter
# that the environment is made with.
set -eu

cd "$(dirname "$0")/.."
environment=.venv-proto
grpcio_tools=1.73.1
mypy_protobuf=5.1.0

stamp="$environment/grpcio-tools-$grpcio_tools-mypy-protobuf-$mypy_protobuf"
if [ ! -e "$stamp" ]; then
    "${PYTHON:-python3}" -m venv "$environment"
    # The setuptools bound is grpc_tools': it imports pkg_resources, which newer ones no longer have.
    "$environment/bin/pip" install --quiet --disable-pip-version-check \
        "grpcio-tools==$grpcio_tools" "mypy-protobuf==$mypy_protobuf" "setuptools<81"
    : >"$stamp"
fi

generate() { # generate DIRECTORY
    PATH="$PWD/$environment/bin:$PATH" "$environment/bin/python" -m grpc_tools.protoc \
        --proto_path=proto \
        --python_out="$1" --grpc_python_out="$1" \
        --mypy_out="quiet:$1" --mypy_grpc_out="quiet:$1" \
        $(find proto -name '*.proto' | LC_ALL=C sort)
    # Files without a service get an empty gRPC module; it says nothing, so it is not kept.
    for module in $(find "$1/raftcache/v1" "$1/raftcache/admin/v1" -name '*_pb2_grpc.py'); do
        if ! grep -q '^class ' "$module"; then
            rm -f "$module" "${module}i"
        fi
    done
}

if [ "${1:-}" = "--check" ]; then
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    generate "$scratch"
    for package in raftcache/v1 raftcache/admin/v1; do
        diff -r --exclude=__pycache__ --exclude=__init__.py "$scratch/$package" "$package" || {
            echo "the generated code in $package is not what proto/ says: run proto/generate.sh and commit" >&2
            exit 1
        }
    done
    buf=$(command -v buf || command -v .venv/bin/buf || true)
    if [ -n "$buf" ]; then
        "$buf" lint proto
    else
        echo "buf is not installed (pip install buf-bin): the style of the .proto files was not checked" >&2
    fi
else
    generate .
fi
