"""What clients do while faults happen, and how it is judged.

A workload is one class: `step` is one thing that one client does, `finish` reads everything once the faults are over, and
`check` hands the history to the checkers. `WORKLOADS` has all of them by name.
"""

from faults.workloads.bank import Bank
from faults.workloads.lists import Lists
from faults.workloads.numbers import Counter
from faults.workloads.registers import Registers, Sessions, StaleReads
from faults.workloads.sets import Sets
from faults.workloads.workload import Workload

WORKLOADS: dict[str, type[Workload]] = {
    "register": Registers,
    "counter": Counter,
    "append": Lists,
    "bank": Bank,
    "set": Sets,
    "stale": StaleReads,
    "sessions": Sessions,
}
