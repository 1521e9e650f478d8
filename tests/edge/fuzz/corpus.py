"""The committed corpora: for each target a text file with one input a line, in hex."""

from pathlib import Path
from typing import Final

DIRECTORY: Final = Path(__file__).parents[1] / "corpus"


def load(target: str) -> list[bytes]:
    """The inputs of a target."""
    path = DIRECTORY / f"{target}.txt"
    return [bytes.fromhex(line) for line in path.read_text().splitlines()] if path.exists() else []


def save(target: str, inputs: list[bytes]) -> None:
    """Replaces a target's inputs; the shortest first."""
    DIRECTORY.mkdir(exist_ok=True)
    lines = sorted({data.hex() for data in inputs}, key=lambda line: (len(line), line))
    (DIRECTORY / f"{target}.txt").write_text("".join(f"{line}\n" for line in lines))
