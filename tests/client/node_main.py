"""One node as a process of its own: `python -m tests.client.node_main NAME DIRECTORY CLIENT PEER ADMIN`, all loopback ports."""

import sys

from raftcache.config.load import load
from raftcache.server.process import NodeProcess, main_loop


def main() -> None:
    name, directory, *ports = sys.argv[1:]
    client, peer, admin = (f"127.0.0.1:{port}" for port in ports)
    config = load(
        environ={},
        flags={
            "node.data_dir": directory,
            "node.name": name,
            "listen.client": client,
            "listen.peer": peer,
            "listen.admin": admin,
        },
    )
    main_loop(NodeProcess(config, on_ready=lambda _: print("ready", flush=True)))


if __name__ == "__main__":
    main()
