"""Tries to break runs on a Dask cluster: kills workers, tuner and scheduler under way.

    python -m experiments.dask_check [--rounds 3] [--workers 3] [--seed 0]     a minute a round

A real scheduler and real workers on this machine. In each round a run is begun, and one after the
other a worker's process is killed (its nanny starts another), a worker is killed with its nanny
and a new one joins, a worker stands still for a while, the tuner is killed and the run resumed, and
at last the scheduler is killed and another started. The table counts what must not happen: a report
that was answered but is not in the journal (lost), or is there twice; a training process or a child
of one that outlives the run (orphans); a run that does not end (hangs). Needs distributed.
"""

import collections
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

from experiments import command
from hpo.journal import load, read_events

ROOT = pathlib.Path(__file__).resolve().parent.parent
TUNER = """
import sys
from hpo import dask_backend
import hpo.tuner
dask_backend.PERIOD, dask_backend.SILENCE, hpo.tuner.N_LOST = 0.5, 4.0, 3
from run import main
sys.exit(main())
"""
OBJECTIVE = """
import json, os, subprocess, time
from hpo import Reporter, uniform

config_space = {"x": uniform(0, 1), "epochs": 12}
metric, mode = "loss", "min"


def objective(config):
    child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    with open(os.path.join(os.environ["CHECK_FOLDER"], f"{os.getpid()}.jsonl"), "a") as file:
        print(json.dumps([os.getpid(), child.pid]), file=file, flush=True)
        report = Reporter()
        for epoch in range(1, config["epochs"] + 1):
            time.sleep(0.15)
            loss = config["x"] / epoch
            report(epoch=epoch, loss=loss, mark=f"{os.getpid()} {epoch}")
            print(json.dumps(f"{os.getpid()} {epoch}"), file=file, flush=True)
    child.kill()
    child.wait()
"""


class Cluster:
    """A scheduler and its workers, each a process that can be killed."""

    def __init__(self, n_workers, folder, port):
        self.n_workers, self.folder, self.port = n_workers, folder, port
        self.address = f"tcp://127.0.0.1:{port}"
        self.environment = os.environ | {"PYTHONPATH": str(ROOT), "CHECK_FOLDER": str(folder)}
        self.start()

    def start(self):
        self.scheduler = self.begin("scheduler", "--port", str(self.port))
        self.workers = [self.begin("worker", self.address) for _ in range(self.n_workers)]

    def begin(self, what, *words):
        if what == "worker":
            words = [*words, "--nthreads", "1", "--death-timeout", "20"]
        words = [sys.executable, "-m", f"distributed.cli.dask_{what}", *words, "--no-dashboard"]
        words += ["--dashboard-address", ":0"]
        with open(self.folder / f"{what}.log", "a") as log:
            options = {"stdout": log, "stderr": log, "start_new_session": True}
            return subprocess.Popen(words, cwd=ROOT, env=self.environment, **options)

    def end(self):
        for process in [self.scheduler, *self.workers]:
            end_tree(process)


def children_of(pid):
    """The process ids of all descendants."""
    found = pathlib.Path(f"/proc/{pid}/task").glob("*/children")  # a thread has its own
    direct = [int(child) for path in found for child in path.read_text().split()]
    return [*direct, *(pid for child in direct for pid in children_of(child))]


def end_tree(process):
    for pid in [process.pid, *children_of(process.pid)]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def tuner(cluster, *words):
    words = [sys.executable, "-c", TUNER, *words, "--dask", cluster.address]
    output = open(cluster.folder / "tuner.log", "a")  # noqa: SIM115 (the process has it too)
    return subprocess.Popen(words, cwd=ROOT, stdout=output, stderr=output)


def play(rng, cluster, n_trials):
    """One round; the number of hangs."""
    run, objective = cluster.folder / "run", cluster.folder / "objective.py"
    objective.write_text(OBJECTIVE)
    options = ["--trials", str(n_trials), "--workers", str(len(cluster.workers))]
    options += ["--stopping", "none", "--results", str(run)]
    process = tuner(cluster, str(objective), *options)
    while not (run / "reports.csv").exists() or not load(run):
        time.sleep(0.1)
    for what in rng.sample(["child", "worker", "pause", "tuner", "child", "tuner"], 6):
        time.sleep(rng.uniform(1, 3))
        worker = rng.choice(cluster.workers)
        if what == "child" and (found := children_of(worker.pid)):
            os.kill(found[-1], signal.SIGKILL)  # a trial, its fork server, or Dask's own process
        elif what == "worker":
            end_tree(worker)
            cluster.workers[cluster.workers.index(worker)] = cluster.begin(
                "worker", cluster.address
            )
        elif what == "pause":
            pids = [worker.pid, *children_of(worker.pid)]
            for number, seconds in ((signal.SIGSTOP, rng.uniform(1, 8)), (signal.SIGCONT, 0)):
                for pid in pids:
                    if pathlib.Path(f"/proc/{pid}").exists():
                        os.kill(pid, number)
                time.sleep(seconds)
        elif what == "tuner" and process.poll() is None:
            process.kill()
            process.wait()
            process = tuner(cluster, "--resume", str(run))
    hangs = 0
    if process.poll() is None:
        end_tree(cluster.scheduler)
        hangs += ends(process) not in (1, 2)  # 2: it was just looking for the scheduler
        cluster.end()
        cluster.start()
        process = tuner(cluster, "--resume", str(run))
    return hangs + (ends(process) != 0)


def ends(process, seconds=120):
    """The exit code; None for a process that had to be killed."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None


def check(cluster, n_trials):
    """Counts: reports, lost, twice, orphans, unended."""
    marks, answered, pids = collections.Counter(), [], []
    for event in read_events(cluster.folder / "run"):
        marks.update([event["metrics"]["mark"]] if "report" in event else [])
    for path in cluster.folder.glob("*.jsonl"):
        first, *lines = map(json.loads, path.read_text().splitlines())
        pids += first
        answered += lines
    until = time.monotonic() + 15  # relays of a killed tuner need SILENCE to notice
    while (left := [pid for pid in pids if is_ours(pid)]) and time.monotonic() < until:
        time.sleep(0.2)
    trials = load(cluster.folder / "run")
    return {
        "reports": len(answered), "lost": sum(mark not in marks for mark in answered),
        "twice": sum(n > 1 for n in marks.values()), "orphans": len(left),
        "unended": n_trials - sum(trial.status in ("done", "failed") for trial in trials),
    }  # fmt: skip


def told(counts):
    return ", ".join(f"{n} {what}" for what, n in counts.items())


def is_ours(pid):
    try:
        words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return b"multiprocessing" in words or b"sleep" in words


def main(arguments=None):
    parser = command.parser("dask_check", __doc__)
    parser.add_argument("--rounds", type=command.positive_int, default=3)
    parser.add_argument("--workers", type=command.positive_int, default=3)
    parser.add_argument("--trials", type=command.positive_int, default=30)
    parser.add_argument("--port", type=command.positive_int, default=8790)
    parser.add_argument("--seed", type=command.natural, default=0)
    args, total = parser.parse_args(arguments), collections.Counter()
    for i in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            cluster = Cluster(args.workers, pathlib.Path(folder), args.port + i)
            try:
                hangs = play(random.Random(args.seed + i), cluster, args.trials)
                found = {**check(cluster, args.trials), "hangs": hangs}
            finally:
                cluster.end()
            print(
                f"round {i}: " + ", ".join(f"{n} {what}" for what, n in found.items()), flush=True
            )
            if any(n for what, n in found.items() if what != "reports"):
                print((cluster.folder / "tuner.log").read_text()[-3000:])
            total.update(found)
    print(f"\nall: {told(total)}")
    return 1 if any(n for what, n in total.items() if what != "reports") else 0


if __name__ == "__main__":
    command.run("dask_check")
