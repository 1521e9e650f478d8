"""`raftcache dev`: a cluster on this machine in one command, and its nodes killed, paused and brought back by name.

    raftcache dev ──► in the foreground until Ctrl-C   ─┐
    raftcache dev --detach                             ─┴─► dev ps | logs | kill | pause | resume | start | restart | stop

Rules of this file:
- it says where the data is and whether it survives, before anybody has written any;
- a cluster is never left half-started: what does not come up is stopped again;
- no process and no ephemeral data is left behind by `dev stop`, Ctrl-C or a failed start.
"""

import os
import select
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import click

from raftcache.cli import dev_state
from raftcache.cli.dev_state import DEFAULT_TAG, DevCluster, DevNode
from raftcache.cli.exits import Exit, Failure
from raftcache.cli.output import JSON, note, output_option, table, write_json
from raftcache.cli.processes import identity_of, is_alive, send_signal

WATCH_SECONDS = 0.5
"""How often the foreground command looks after its nodes."""
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What tells the foreground command to stop: Ctrl-C, `kill`, a closed terminal."""
NODES_MAX = 9
"""More would show nothing new, and only be slower on one machine."""
DEV_SHARDS_MAX = 256
"""Each is an environment of its own in every node of this machine; a cluster may have more (`raftcache.ids.SHARDS_MAX`)."""


def tag_option(function: Callable[..., None]) -> Callable[..., None]:
    """Adds `--tag`; without it, the group's."""
    return click.option("--tag", help="Which development cluster, where there are several.")(function)


@click.group(invoke_without_command=True, subcommand_metavar="[COMMAND]")
@click.option("--nodes", type=click.IntRange(1, NODES_MAX), help="How many nodes.  [default: 3]")
@click.option("--shards", type=click.IntRange(1, DEV_SHARDS_MAX), help="How many shards.  [default: 8]")
@click.option(
    "--data-dir", type=click.Path(path_type=Path, file_okay=False), help="Keep the data here, and start from it."
)
@click.option("--base-port", type=click.IntRange(1024, 65_000), help="Client port of the first node.  [default: 7400]")
@click.option("--random-ports", is_flag=True, help="Any free ports.")
@click.option("--ephemeral", is_flag=True, help="Data in a temporary directory, deleted at the end: the default.")
@click.option("--detach", is_flag=True, help="Return when the cluster is ready; `raftcache dev stop` ends it.")
@click.option("--tag", help=f"A name, to have several at once.  [default: {DEFAULT_TAG}]")
@click.option("--set", "settings", multiple=True, metavar="SECTION.KEY=VALUE", help="A setting of all nodes.")
@click.option(
    "--ready-file", type=click.Path(path_type=Path, dir_okay=False), help="Written when it is ready, as JSON."
)
@output_option
@click.pass_context
def dev(
    ctx: click.Context,
    nodes: int | None,
    shards: int | None,
    data_dir: Path | None,
    base_port: int | None,
    random_ports: bool,
    ephemeral: bool,
    detach: bool,
    tag: str | None,
    settings: tuple[str, ...],
    ready_file: Path | None,
    output: str,
) -> None:
    """A cluster on this machine, in one command.

    Runs until Ctrl-C, or, with --detach, until `raftcache dev stop`. Other commands find it by themselves. Where standard
    output is no terminal, one line of JSON says that it is ready.

    \b
    raftcache dev                              three nodes, eight shards; the data goes when it stops
    raftcache dev --data-dir ./mycluster       keeps the data; the same command starts from it again
    raftcache dev --detach --random-ports      for scripts and tests
    raftcache dev kill 2                       kill -9 of one node; the others go on
    raftcache dev start 2                      it comes back on its data
    raftcache dev logs 2 -f                    what it says
    raftcache dev stop                         ends all of it
    """
    ctx.obj = dev_state.check_tag(tag) if tag else None
    if ctx.invoked_subcommand is not None:
        return
    if ephemeral and data_dir is not None:
        raise click.UsageError("--ephemeral deletes its data at the end and --data-dir keeps it: choose one")
    if random_ports and base_port is not None:
        raise click.UsageError("--random-ports and --base-port exclude each other")
    wanted = Wanted(nodes, shards, data_dir, base_port, random_ports, list(settings), ctx.obj or DEFAULT_TAG)
    _run(wanted, detach=detach, ready_file=ready_file, output=output)


class Wanted:
    """What was asked for on the command line; None = not said."""

    def __init__(
        self,
        nodes: int | None,
        shards: int | None,
        data_dir: Path | None,
        base_port: int | None,
        random_ports: bool,
        settings: list[str],
        tag: str,
    ) -> None:
        self.nodes = nodes
        self.shards = shards
        self.data_dir = data_dir
        self.base_port = base_port
        self.random_ports = random_ports
        self.settings = settings
        self.tag = tag


# --- Starting -----------------------------------------------------------------------------------------------------


def _run(wanted: Wanted, *, detach: bool, ready_file: Path | None, output: str) -> None:
    from raftcache.cli import dev_cluster

    _check_settings(wanted.settings)
    if ready_file is not None:
        ready_file.unlink(missing_ok=True)
    # Being told to end while nodes are being started is the same as Ctrl-C: they are stopped again.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    with dev_state.locked(wanted.tag):
        cluster = _new_cluster(wanted)
        if not detach:
            cluster.supervisor = identity_of(os.getpid())
        dev_state.save(cluster)
        try:
            identity = dev_cluster.start(cluster)
            ending = _wait_for_signals() if not detach else None
        except BaseException:
            # Interrupted, too: nobody is there to look after the nodes.
            dev_cluster.kill([node.process for node in cluster.nodes if node.process is not None])
            dev_state.forget(cluster)
            raise
    document = dev_cluster.ready_document(cluster, identity)
    if ready_file is not None:
        dev_cluster.write_ready_file(ready_file, document)
    if output == JSON or not sys.stdout.isatty():
        write_json("dev-ready", document)
    if output != JSON:
        click.echo(_banner(cluster, identity, detach=detach), err=not sys.stdout.isatty())
    if ending is not None:
        _supervise(cluster, ending)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _wait_for_signals() -> int:
    """From here on a signal interrupts nothing half-way: it makes the returned file descriptor readable."""
    reader, writer = os.pipe()

    def tell(number: int, frame: FrameType | None) -> None:
        os.write(writer, b".")

    for number in ENDING:
        signal.signal(number, tell)
    return reader


def _check_settings(settings: list[str]) -> None:
    """Raises: `ConfigError` with the nearest name, before anything is started."""
    from raftcache.cli.dev_cluster import OWN_SECTIONS
    from raftcache.config.load import load, parse_assignment

    flags = dict(parse_assignment(text) for text in settings)
    for path in flags:
        if path.partition(".")[0] in OWN_SECTIONS:
            raise click.UsageError(f"--set {path}: names, addresses and TLS of a development cluster are its own")
    load(flags=flags)


def _new_cluster(wanted: Wanted) -> DevCluster:
    """The cluster to start, its data directory in place. Raises: `Failure` where one runs already, or a port is in use."""
    from raftcache.cli import dev_cluster

    _clear_stale(wanted.tag)
    shape = dev_state.load_shape(wanted.data_dir) if wanted.data_dir is not None else None
    if shape is not None:
        cluster = _again(shape, wanted)
    else:
        count = wanted.nodes or 3
        ports = (
            dev_cluster.random_ports(count)
            if wanted.random_ports
            else dev_cluster.ports_from(wanted.base_port or 7400, count)
        )
        cluster = DevCluster(
            tag=wanted.tag,
            directory=Path(),
            ephemeral=wanted.data_dir is None,
            shards=wanted.shards or 8,
            nodes=[dev_cluster.new_node(number, triple) for number, triple in enumerate(ports, 1)],
        )
    cluster.settings = wanted.settings
    dev_cluster.require_free(cluster.nodes)
    if wanted.data_dir is None:
        cluster.directory = Path(tempfile.mkdtemp(prefix=f"raftcache-dev-{wanted.tag}-"))
    else:
        cluster.directory = wanted.data_dir.absolute()
        try:
            cluster.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise Failure(f"{cluster.directory} cannot be made: {error.strerror}", code=Exit.USAGE) from None
    dev_state.save_shape(cluster)
    return cluster


def _clear_stale(tag: str) -> None:
    found = dev_state.load(tag)
    if found is None:
        return
    if found.alive:
        raise Failure(
            f"development cluster {tag!r} runs already: {', '.join(found.endpoints)}",
            code=Exit.PRECONDITION,
            hint="`raftcache dev ps` shows it, `raftcache dev stop` ends it; with --tag NAME you have a second one"
            + (
                ""
                if any(node.state != "dead" for node in found.nodes)
                else "\nits nodes are dead: `raftcache dev start` brings them back"
            ),
        )
    note(f"forgetting development cluster {tag!r}, whose processes are gone")
    dev_state.forget(found)


def _again(shape: DevCluster, wanted: Wanted) -> DevCluster:
    """The cluster as it was made. Raises: `Failure` where something else is asked for now."""
    first_port = int(shape.nodes[0].client.rpartition(":")[2])
    for option, asked, made in (
        ("--nodes", wanted.nodes, len(shape.nodes)),
        ("--shards", wanted.shards, shape.shards),
        ("--base-port", wanted.base_port, first_port),
    ):
        if asked is not None and asked != made:
            raise Failure(
                f"the cluster in {wanted.data_dir} was made with {option} {made}, not {asked}",
                code=Exit.PRECONDITION,
                hint=f"leave {option} out to start it as it is, or name another --data-dir",
            )
    if wanted.random_ports:
        note(f"the cluster in {wanted.data_dir} keeps its ports; --random-ports is for a new one")
    owner = next((c for c in dev_state.running_clusters() if c.directory == shape.directory), None)
    if owner is not None:
        raise Failure(
            f"the cluster in {wanted.data_dir} runs already, as {owner.tag!r}",
            code=Exit.PRECONDITION,
            hint=f"`raftcache dev stop --tag {owner.tag}` ends it",
        )
    shape.tag = wanted.tag
    return shape


def _banner(cluster: DevCluster, identity: int, *, detach: bool) -> str:
    count = len(cluster.nodes)
    stop = "raftcache dev stop" + ("" if cluster.tag == DEFAULT_TAG else f" --tag {cluster.tag}")
    endings = stop if detach else f"Ctrl-C, or {stop}"
    kept = (
        f"TEMPORARY, deleted by {endings}"
        if cluster.ephemeral
        else f"kept; `raftcache dev --data-dir {shlex.quote(str(cluster.directory))}` starts from it again"
    )
    rows = [(node.name, node.client, f"http://{node.admin}/metrics") for node in cluster.nodes]
    nodes = table(("NODE", "CLIENTS", "METRICS"), rows)
    others = [c.tag for c in dev_state.running_clusters() if c.tag != cluster.tag]
    lines = [
        f"raftcache {count} node{'s'[: count > 1]}, {cluster.shards} shard{'s'[: cluster.shards > 1]}, "
        f"every shard has a leader (cluster {identity})",
        "",
        *(f"  {line}" for line in nodes.splitlines()),
        "",
        f"  data  {cluster.directory}",
        f"        {kept}",
        "",
        "  Try it" + ("" if detach else ", in another terminal") + ":",
    ]
    if others and cluster.tag != DEFAULT_TAG:
        # Left alone, commands find the only cluster there is, or the one without a tag of its own.
        lines.append(f"    export RAFTCACHE_ENDPOINTS={','.join(node.client for node in cluster.nodes)}")
    tag = "" if cluster.tag == DEFAULT_TAG else f" --tag {cluster.tag}"
    lines += [
        "    raftcache put greeting hello",
        "    raftcache get greeting",
        "    raftcache status",
        f"    raftcache dev kill 1{tag}      # kill -9: the others go on; `dev start 1{tag}` brings it back",
        "",
        "  From Python:",
        "    from raftcache import Client",
        f'    with Client("{cluster.nodes[0].client}") as client:',
        '        client.put("greeting", b"hello")',
        "",
        f"  To end it: {endings}",
    ]
    return "\n".join(lines)


# --- In the foreground --------------------------------------------------------------------------------------------


def _supervise(cluster: DevCluster, ending: int) -> None:
    """Looks after the nodes until a signal comes, or somebody else has stopped the cluster."""
    from raftcache.cli import dev_cluster

    told: set[object] = set()
    while not select.select([ending], [], [], WATCH_SECONDS)[0]:
        dev_cluster.reap()
        found = dev_state.load(cluster.tag)
        if found is None or found.supervisor != cluster.supervisor:
            note("the cluster was stopped by another command")
            return
        for node in found.nodes:
            if node.state == "dead" and node.process not in told:
                told.add(node.process)
                note(f"{node.name} is dead; `raftcache dev start {node.name}` brings it back")
    note("stopping")
    with dev_state.locked(cluster.tag):
        found = dev_state.load(cluster.tag)
        if found is not None and found.supervisor == cluster.supervisor:
            dev_cluster.stop(found)
    note("stopped; no process is left" + (", the data is deleted" if cluster.ephemeral else ", the data is kept"))


# --- From another terminal ----------------------------------------------------------------------------------------


def _chosen(ctx: click.Context, tag: str | None) -> str:
    """The tag that is meant. Raises: `Failure`."""
    wanted = dev_state.check_tag(tag) if tag else ctx.obj
    if wanted is not None:
        return str(wanted)
    tags = dev_state.all_tags()
    if len(tags) == 1:
        return tags[0]
    if len(tags) > 1 and DEFAULT_TAG not in tags:
        raise click.UsageError(f"there are several development clusters: say which with --tag ({', '.join(tags)})")
    return DEFAULT_TAG


def _cluster(tag: str) -> DevCluster:
    """The cluster of this tag. Raises: `Failure`."""
    cluster = dev_state.load(tag)
    if cluster is None:
        others = dev_state.all_tags()
        raise Failure(
            f"there is no development cluster {tag!r}",
            code=Exit.NOT_FOUND,
            hint=f"there are: {', '.join(others)}" if others else "`raftcache dev` starts one",
        )
    return cluster


@dev.command()
@tag_option
@output_option
@click.pass_context
def ps(ctx: click.Context, tag: str | None, output: str) -> None:
    """List development clusters and their nodes.

    \b
    raftcache dev ps
    raftcache dev ps -o json | jq -r '.clusters[].nodes[] | select(.state == "dead") | .name'
    """
    wanted = tag or ctx.obj
    clusters = [_cluster(dev_state.check_tag(wanted))] if wanted else [_cluster(each) for each in dev_state.all_tags()]
    if output == JSON:
        write_json("dev-clusters", {"clusters": [_cluster_document(cluster) for cluster in clusters]})
        return
    if not clusters:
        note("no development cluster; `raftcache dev` starts one")
    for number, cluster in enumerate(clusters):
        if number:
            click.echo()
        kept = "temporary" if cluster.ephemeral else "kept"
        watched = "in the foreground" if _is_watched(cluster) else "detached"
        click.echo(
            f"{cluster.tag}: {cluster.shards} shard{'s'[: cluster.shards > 1]}, {watched}, data {kept} in {cluster.directory}"
        )
        rows = [
            (node.name, node.state, _pid(node), node.client, f"http://{node.admin}/metrics") for node in cluster.nodes
        ]
        click.echo(table(("NODE", "STATE", "PID", "CLIENTS", "METRICS"), rows, right=frozenset({2})))


def _is_watched(cluster: DevCluster) -> bool:
    return cluster.supervisor is not None and is_alive(cluster.supervisor)


def _pid(node: DevNode) -> str:
    return str(node.process.pid) if node.process is not None and node.state != "dead" else "-"


def _cluster_document(cluster: DevCluster) -> dict[str, object]:
    return {
        "tag": cluster.tag,
        "data_dir": str(cluster.directory),
        "ephemeral": cluster.ephemeral,
        "foreground": _is_watched(cluster),
        "shards": cluster.shards,
        "nodes": [
            {
                "name": node.name,
                "state": node.state,
                "pid": node.process.pid if node.process is not None and node.state != "dead" else None,
                "client": node.client,
                "peer": node.peer,
                "admin": node.admin,
            }
            for node in cluster.nodes
        ],
    }


@dev.command()
@tag_option
@click.option("--all", "every", is_flag=True, help="All development clusters.")
@output_option
@click.pass_context
def stop(ctx: click.Context, tag: str | None, every: bool, output: str) -> None:
    """End a development cluster; ephemeral data goes with it.

    \b
    raftcache dev stop
    raftcache dev stop --all
    """
    from raftcache.cli import dev_cluster

    stopped = []
    for each in dev_state.all_tags() if every else [_chosen(ctx, tag)]:
        with dev_state.locked(each):
            cluster = _cluster(each)
            dev_cluster.stop(cluster)
        stopped.append({"tag": each, "data_dir": str(cluster.directory), "deleted": cluster.ephemeral})
        if output != JSON:
            kept = f"deleted {cluster.directory}" if cluster.ephemeral else f"the data is kept in {cluster.directory}"
            click.echo(f"stopped {each}; {kept}")
    if output == JSON:
        write_json("dev-stop", {"stopped": stopped})


Nodes = tuple[str, ...]
_nodes_argument = click.argument("names", metavar="NODE...", nargs=-1, required=True)


def _each(
    ctx: click.Context, tag: str | None, names: Nodes, act: Callable[[DevCluster, DevNode], str], output: str
) -> None:
    """Does something with nodes of a cluster, under its lock, and says what was done; in JSON, how the cluster is now."""
    chosen = _chosen(ctx, tag)
    with dev_state.locked(chosen):
        cluster = _cluster(chosen)
        for node in [cluster.node(name) for name in names]:
            text = act(cluster, node)
            if output != JSON:
                click.echo(text)
        if output == JSON:
            write_json("dev-cluster", _cluster_document(cluster))


def _signal(node: DevNode, number: signal.Signals) -> None:
    """Raises: `Failure` where the node is dead."""
    if node.process is None or not send_signal(node.process, number):
        raise Failure(f"{node.name} is dead", hint=f"`raftcache dev start {node.name}` brings it back")


@dev.command()
@_nodes_argument
@tag_option
@output_option
@click.pass_context
def kill(ctx: click.Context, names: Nodes, tag: str | None, output: str) -> None:
    """Kill nodes at once, as `kill -9` and a power cut would.

    Every acknowledged write survives: it is on a majority's disks.

    \b
    raftcache dev kill 2
    raftcache dev kill 1 2 3       all of them; `raftcache dev start` brings them back
    """
    from raftcache.cli import dev_cluster

    def act(cluster: DevCluster, node: DevNode) -> str:
        if node.process is None or node.state == "dead":
            return f"{node.name} is dead already"
        dev_cluster.kill([node.process])
        return f"killed {node.name} (process {node.process.pid})"

    _each(ctx, tag, names, act, output)


@dev.command()
@_nodes_argument
@tag_option
@output_option
@click.pass_context
def pause(ctx: click.Context, names: Nodes, tag: str | None, output: str) -> None:
    """Stop the time of nodes (SIGSTOP): they are there, and do not answer.

    \b
    raftcache dev pause 1
    raftcache status               shows it as one that does not answer
    raftcache dev resume 1
    """

    def act(_: DevCluster, node: DevNode) -> str:
        _signal(node, signal.SIGSTOP)
        return f"paused {node.name}"

    _each(ctx, tag, names, act, output)


@dev.command()
@_nodes_argument
@tag_option
@output_option
@click.pass_context
def resume(ctx: click.Context, names: Nodes, tag: str | None, output: str) -> None:
    """Let paused nodes go on (SIGCONT)."""

    def act(_: DevCluster, node: DevNode) -> str:
        _signal(node, signal.SIGCONT)
        return f"resumed {node.name}"

    _each(ctx, tag, names, act, output)


@dev.command()
@click.argument("names", metavar="[NODE]...", nargs=-1)
@tag_option
@output_option
@click.pass_context
def start(ctx: click.Context, names: Nodes, tag: str | None, output: str) -> None:
    """Bring dead nodes back on their data; without NODE, all that are dead.

    \b
    raftcache dev start 2
    """
    from raftcache.cli import dev_cluster

    chosen = _chosen(ctx, tag)
    with dev_state.locked(chosen):
        cluster = _cluster(chosen)
        nodes = [cluster.node(name) for name in names] or cluster.nodes
        dead = [node for node in nodes if node.state == "dead"]
        said = [f"{node.name} is {node.state} already" for node in nodes if node not in dead and names]
        _require_directory(cluster)
        dev_cluster.require_free(dead)
        for node in dead:
            dev_cluster.spawn(cluster, node)
        dev_cluster.wait_ready(cluster, dead)
        said += [f"started {node.name} (process {_pid(node)})" for node in dead]
    if output == JSON:
        write_json("dev-cluster", _cluster_document(cluster))
    else:
        click.echo("\n".join(said or ["all nodes run already"]))


def _require_directory(cluster: DevCluster) -> None:
    if not cluster.directory.is_dir():
        raise Failure(
            f"the data of development cluster {cluster.tag!r} is gone: {cluster.directory}",
            hint="`raftcache dev stop` forgets it, `raftcache dev` starts a new one",
        )


@dev.command()
@_nodes_argument
@tag_option
@output_option
@click.pass_context
def restart(ctx: click.Context, names: Nodes, tag: str | None, output: str) -> None:
    """End nodes cleanly and start them again, one after the other.

    \b
    raftcache dev restart 1 2 3    a rolling restart: no request fails
    """
    from raftcache.cli import dev_cluster

    def act(cluster: DevCluster, node: DevNode) -> str:
        dev_cluster.stop_node(cluster, node)
        dev_cluster.spawn(cluster, node)
        dev_cluster.wait_ready(cluster, [node])
        return f"restarted {node.name} (process {_pid(node)})"

    _each(ctx, tag, names, act, output)


@dev.command()
@click.argument("names", metavar="[NODE]...", nargs=-1)
@click.option("-f", "--follow", is_flag=True, help="Go on as more is written, until Ctrl-C.")
@click.option("-n", "--lines", type=click.IntRange(0, 1_000_000), default=50, show_default=True, help="Of each node.")
@tag_option
@output_option
@click.pass_context
def logs(ctx: click.Context, names: Nodes, follow: bool, lines: int, tag: str | None, output: str) -> None:
    """Show what nodes say; without NODE, all of them.

    \b
    raftcache dev logs 2 -f
    raftcache dev logs -o json | jq 'select(.level == "warning")'
    """
    from raftcache.cli import dev_logs

    cluster = _cluster(_chosen(ctx, tag))
    nodes = [cluster.node(name) for name in names] or cluster.nodes
    dev_logs.show(cluster, nodes, lines=lines, follow=follow, as_json=output == JSON)
