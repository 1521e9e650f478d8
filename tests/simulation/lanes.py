"""A timeline in plain text: one lane per node, time downwards. Drawn for a seed that failed."""

from __future__ import annotations

NS_PER_MS = 1_000_000
LANE_WIDTH = 36


class Lanes:
    """Collects notes, and draws the last of them."""

    def __init__(self, nodes: int) -> None:
        self._nodes = nodes
        self._notes: list[tuple[int, int, str]] = []

    def add(self, at_ns: int, node: int, text: str) -> None:
        """A note of a node; 0: of the world."""
        self._notes.append((at_ns, node, text))

    def draw(self, rows_max: int = 80) -> str:
        """Notes of one moment and one node stand in one row; equal ones that follow each other are counted."""
        rows: list[tuple[int, int, list[str]]] = []
        for at_ns, node, text in self._notes:
            at_ms = at_ns // NS_PER_MS
            if rows and rows[-1][0] == at_ms and rows[-1][1] == node:
                if rows[-1][2][-1] != text:
                    rows[-1][2].append(text)
            else:
                rows.append((at_ms, node, [text]))
        names = [f"n{number}".ljust(LANE_WIDTH) for number in range(1, self._nodes + 1)]
        lines = ["      ms  " + "".join(names).rstrip()]
        for at_ms, node, texts in rows[-rows_max:]:
            said = "; ".join(texts)
            if node == 0:
                lines.append(f"{at_ms:8}  ---- {said}")
                continue
            for place in range(0, max(1, len(said)), LANE_WIDTH - 2):
                stamp = f"{at_ms:8}" if place == 0 else " " * 8
                lines.append(f"{stamp}  {' ' * LANE_WIDTH * (node - 1)}{said[place : place + LANE_WIDTH - 2]}".rstrip())
        return "\n".join(lines)
