"""Tries to break runs on a Dask cluster: kills workers, tuner and scheduler under way.

    python -m experiments.dask_check [--rounds 3] [--seed 0]     a minute a round

A real scheduler and three real workers on this machine. In each round a run is begun. Then, in a
random order, a worker's process is killed (its nanny starts another), a worker is killed with its
nanny and a new one joins, and the tuner is killed twice. At last the scheduler is killed and
another one started. The run is resumed each time. What is counted is what experiments.torture
counts, by the same side log. Needs distributed.
"""

import os
import signal
import socket
import subprocess
import sys
import time

from experiments import command, torture
from experiments.command import ROOT, end_tree, is_alive
from experiments.torture import Run, Tally

TUNER = """
import sys, run, hpo.tuner
from hpo import dask_backend
dask_backend.PERIOD, dask_backend.SILENCE, hpo.tuner.N_LOST = 0.5, 4.0, 3
sys.exit(run.main())
"""


class Cluster:
    """A scheduler and its workers, each a process that can be killed."""

    def __init__(self, n_workers, folder, port):
        self.n_workers, self.folder, self.port = n_workers, folder, port
        self.address = f"tcp://127.0.0.1:{port}"
        log = {"TORTURE_LOG": str(folder / "log")}
        self.environment = os.environ | {"PYTHONPATH": str(ROOT)} | log
        self.start()

    def start(self):
        self.scheduler = self.begin("scheduler", "--port", str(self.port))
        self.workers = [self.begin_worker() for _ in range(self.n_workers)]

    def begin_worker(self):
        return self.begin("worker", self.address, "--nthreads", "1", "--death-timeout", "20")

    def begin(self, what, *words):
        words = [sys.executable, "-m", f"distributed.cli.dask_{what}", *words, "--no-dashboard"]
        words += ["--dashboard-address", ":0"]
        with open(self.folder / f"{what}.log", "a") as log:
            options = {"stdout": log, "stderr": log, "start_new_session": True}
            return subprocess.Popen(words, cwd=ROOT, env=self.environment, **options)

    def end(self):
        for process in [self.scheduler, *self.workers]:
            end_tree(process)


class DaskRun(Run):
    """The run of a cluster, whose own processes have the side log in their environment too."""

    def processes(self):
        """Trials, and the children that they have begun."""
        trials = self.notes("process")
        return [pid for pid in super().processes() if pid in trials or is_alive(pid, "sleep")]


def play(run, cluster, rng):
    """A round; returns what `finish` does."""
    for what in [*rng.sample(["process", "worker", "tuner", "tuner"], 4), "scheduler"]:
        process, i = run.start(), rng.randrange(len(cluster.workers))
        run.tally.events += 1
        run.wait_for_answers(9)
        time.sleep(rng.uniform(0, 2))
        if what == "tuner":
            process.kill()
            run.wait(process, -signal.SIGKILL)
        elif what == "scheduler":
            end_tree(cluster.scheduler)
            run.wait(process, 1, 2, seconds=120)  # 2: it was just looking for it
            cluster.end()
            cluster.start()
        elif what == "worker":
            end_tree(cluster.workers[i])
            cluster.workers[i] = cluster.begin_worker()
            run.interrupt(process)
        else:
            torture.kill_spawned(cluster.workers[i].pid)
            run.interrupt(process)
    return run.finish()


def play_rounds(home, n, rng):
    tallies = {}
    for i in range(n):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        folder, tally = home / str(i), Tally()
        folder.mkdir(parents=True)
        cluster = Cluster(3, folder, port)
        options = ["--dask", cluster.address, "--workers", 3, "--set", "fault=grandchildren"]
        options += ["--set", "epochs=12", "--set", "seconds=0.15"]
        try:
            again = play(DaskRun(folder, tally, options, ["-c", TUNER]), cluster, rng)
            tallies[f"round {i}, {again}"] = tally
        finally:
            cluster.end()
    return tallies


def main(arguments=None):
    parts = [("rounds", 3, "default 3", play_rounds)]
    return torture.main(arguments, parts, "dask_check", __doc__)


if __name__ == "__main__":
    command.run("dask_check")
