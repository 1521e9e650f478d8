"""What an event of the simulated world is."""

from enum import IntEnum


class Kind(IntEnum):
    """Ticks and turns come first: they may be idle, and idle ones are not counted."""

    TICK = 0
    TURN = 1
    DISK = 2
    MESSAGE = 3
    TIMER = 4
    CLIENT = 5
    FAULT = 6
