"""Several processes at once, some of them killed: every acknowledged commit is there, numbered without a gap."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from workbench.store import Store

ROOT = Path(__file__).parents[2]


def start(command, root, name="a/b", seed=0, n=0):
    args = [sys.executable, "-m", "tests.store.workers", command, str(root), name, str(seed), str(n)]
    return subprocess.Popen(args, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.splitlines()


def test_four_writers_of_one_name_number_their_versions_without_a_gap(tmp_path):
    writers = [start("write", tmp_path, seed=seed, n=15) for seed in range(1, 5)]
    acknowledged = [line for writer in writers for line in finish(writer)]
    store = Store(tmp_path)
    there = {f"{art.version} {art.digest}" for art in store.log("a/b")}
    assert set(acknowledged) == there and len(acknowledged) == 60
    assert sorted(int(line.split()[0]) for line in acknowledged) == list(range(1, 61))
    assert not store.fsck() and not list((tmp_path / ".store/staging").iterdir())


def test_killing_a_writer_at_any_moment_loses_nothing_acknowledged(tmp_path):
    rng = random.Random(7)
    acknowledged: list[str] = []
    for _ in range(15):
        writer = start("write", tmp_path, seed=rng.randrange(1, 10**6))
        assert writer.stdout is not None
        acknowledged.append(writer.stdout.readline().strip())
        time.sleep(rng.random() * 0.08)
        writer.send_signal(signal.SIGKILL)
        rest, _ = writer.communicate()
        acknowledged += [line for line in rest.split("\n")[:-1] if line]
        store = Store(tmp_path)
        there = {f"{art.version} {art.digest}": art for art in store.log("a/b")}
        assert set(acknowledged) <= set(there)
        assert [art.version for art in there.values()] == list(range(len(there), 0, -1))
    assert len(acknowledged) >= 15 and not store.fsck()
    store.gc(age=0)
    assert not list((tmp_path / ".store/staging").iterdir()) and not store.fsck()


def test_collecting_and_removing_beside_writers_harms_no_one(tmp_path):
    writers = [start("write", tmp_path, name, seed=seed, n=25) for seed, name in [(1, "a/b"), (2, "a/b"), (3, "c")]]
    churners = [start("churn", tmp_path, seed=seed, n=4) for seed in (1, 2)]
    acknowledged = [finish(writer) for writer in writers]
    reports = [finish(churner) for churner in churners]
    assert all(len(report) == 1 for report in reports), reports
    store = Store(tmp_path)
    log = {art.version: art for art in store.log("a/b")}
    assert sorted(log) == list(range(1, 51))
    for line in acknowledged[0] + acknowledged[1]:
        version, digest = line.split()
        assert log[int(version)].digest == digest
    assert not store.fsck()
    store.gc(age=0)
    live = [path for path in tmp_path.rglob("*.bin") if path.is_file()]
    inodes = {path.stat().st_ino for path in live}
    assert len({path.read_bytes() for path in live}) <= len(inodes) < len(live), "equal bytes are shared still"
    assert not store.fsck()
