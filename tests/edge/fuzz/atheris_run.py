"""One target under atheris: `python -m tests.edge.fuzz.atheris_run TARGET [arguments of libFuzzer]`."""

import sys

import atheris

with atheris.instrument_imports(include=["raftcache.edge", "raftcache.wire"]):
    from tests.edge.fuzz.targets import TARGETS


def main() -> None:
    """Never returns: libFuzzer ends the process."""
    target = TARGETS[sys.argv[1]]
    # To merge corpora libFuzzer runs itself, by its first argument and a shell.
    itself = f"{sys.executable} -m tests.edge.fuzz.atheris_run {sys.argv[1]}"
    arguments = [itself, f"-max_len={target.bytes_max}", *sys.argv[2:]]
    mutate = target.mutate
    if mutate is None:
        atheris.Setup(arguments, target.run)
    else:
        atheris.Setup(
            arguments, target.run, custom_mutator=lambda data, size, seed: mutate(data, size, seed, atheris.Mutate)
        )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
