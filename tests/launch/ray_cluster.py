"""A Ray cluster of two nodes on this machine, and a launch on it whose workers are killed; run by `test_ray`.

In a process of its own, because Ray decides when it is imported that it listens on 127.0.0.1 alone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from ray.cluster_utils import Cluster

from tests.launch.real import ONE, SPEC, killing, launched, pid_of, until
from workbench.cli import main
from workbench.launch import Jobs
from workbench.launch.jobs import _exists
from workbench.store import Store

GRID = ["--sweep", "model=organism:planted-ioi,params.edit=zero,mean"]


def together(store: Store, seen: list[int]) -> None:
    """How many tasks run at once, at most: each takes all of a node."""
    until(lambda: seen.append(sum(bool(pid_of(job)) for job in Jobs(store))) or seen[-1] == 2)


def listening() -> list[str]:
    """Addresses other than this machine's own on which a Ray process listens."""
    import psutil

    mine = psutil.Process().children(recursive=True)
    open_to = {c.laddr.ip for p in mine for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    return sorted(ip for ip in open_to if not ip.endswith("127.0.0.1") and ip != "::1")


def head(tries: int = 3) -> Cluster:
    """The first node; Ray gives a node half a minute to come up, which a busy machine may not manage at once."""
    try:
        return Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    except Exception:
        if tries == 1:
            raise
        return head(tries - 1)


def stopped(store: Store, address: str) -> list[dict]:
    """What a signal to the command leaves while a worker computes, three times; then the command is left to finish."""
    options = ["--launcher", "ray", "--launch-option", f"address={address}"]
    found = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        process, worker = launched(store, *options)
        (job,) = Jobs(store)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        gone = until(lambda worker=worker: not _exists(worker), 20)
        left = list((store.root / ".store" / "staging").glob("*"))
        found.append(
            {"code": process.returncode, "said": err, "worker": "gone" if gone else "there", "state": job.state(store)}
            | {"names": store.names(), "staging": len(left)}
        )
    found.append({"code": main(["run", str(SPEC), *ONE, *options, "--store", str(store.root)])})
    return found


def run(folder: Path) -> dict:
    store = Store(folder / "store")
    cluster = head()
    try:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        command = ["run", str(SPEC), *GRID, "--launcher", "ray", "--launch-option", f"address={cluster.address}"]
        command += ["--store", str(store.root)]
        seen: list[int] = []
        watcher = threading.Thread(target=together, args=(store, seen))
        watcher.start()
        with killing(store, "edit-mean") as killed:
            first = main(command)
        watcher.join()
        after = {job.name.rpartition("/")[2]: job.state(store) for job in Jobs(store)}
        errors = [task.ended.get("error") for job in Jobs(store) for task in job.tasks]
        second = main([*command, "--retry"])
        return {
            "stopped": stopped(Store(folder / "other"), str(cluster.address)),
            "killed": len(killed),
            "codes": [first, second],
            "after": after,
            "errors": [error for error in errors if error],
            "at_once": max(seen),
            "names": store.names(),
            "problems": len(store.fsck()),
            "open": listening(),
        }
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    found = run(Path(sys.argv[1]))
    (Path(sys.argv[1]) / "found.json").write_text(json.dumps(found))
