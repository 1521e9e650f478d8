"""Small deliberate bugs, by the hundred: what the tests and the simulator make of code that is wrong in one place.

The zoo (`tests/simulation/zoo.py`) holds bugs that somebody thought of. These are drawn by a seed from the code itself:

    mutations.py   where raft/, kv/ and storage/ can be changed, and a fair sample of it
    force.py       one mutant in force in a process and in its children: an import hook, no file is changed
    judging.py     one mutant before one instrument, in a process of its own, within a budget
    campaign.py    many mutants up the ladder of instruments; what is known already is not asked again
    __main__.py    `make mutants`
"""
