"""The command `raftcache`.

Rules of this package:
- answers go to standard output, words about them to standard error; every end has an exit code that says what to do next
  (`exits`);
- nothing is decided here that a node decides: commands translate, ask, wait and show;
- what is heavy (gRPC, the server, cryptography) is imported by the command that needs it.
"""

import sys

try:
    from raftcache.cli.main import main
except ModuleNotFoundError as error:
    if error.name != "click":
        raise
    # A client-only install has the entry point, too, and not what it needs.
    sys.exit("raftcache: the command needs packages that are not installed: pip install 'raftcache[cli]'")

__all__ = ["main"]
