"""What the tuner itself costs: memory and time over thousands of trials, and how many trials and reports it can serve.

    python -m experiments.load                       10,000 trials, then 64 workers, then reports: some minutes; Linux
    python -m experiments.load --trials 0            without the first part

The default stopping rule is asked after every report; in the first part it stops trials, in the others its answer is
ignored. The tuner's time is its processor time, which other work on the machine changes little. A report's wait is the time from
`report(...)` to the tuner's answer, as the trial sees it.
"""

import argparse
import collections
import contextlib
import itertools
import os
import pathlib
import sys
import tempfile
import time

from experiments import command
from hpo.objective import describe
from hpo.results import Results
from hpo.searchers import RandomSearch
from hpo.status import Status
from hpo.stopping import halving
from hpo.trial import LocalBackend, warm_up
from hpo.tuner import Tuner
from run import natural

OBJECTIVE = """
import time
from hpo import Reporter, uniform

config_space = {"x": uniform(0, 1), "epochs": 9, "pause": 0.0}
metric, mode = "y", "min"

def objective(config):
    report, wait = Reporter(), 0.0
    due = time.perf_counter()
    for epoch in range(1, config["epochs"] + 1):
        due = max(due + config["pause"], time.perf_counter())
        time.sleep(max(0.0, due - time.perf_counter()))
        before = time.perf_counter()
        report(epoch=epoch, y=config["x"] / epoch, wait=wait)
        wait = time.perf_counter() - before
"""


class Watch(Status):
    """The status line as on a terminal, to nowhere; measures this process every so many trials."""

    def __init__(self, *arguments, every):
        super().__init__(*arguments)
        self.live, self.seconds, self.every, self.rows = True, 1.0, every, []
        self.n_ended, self.most_files, self.most_processes = 0, 0, 0

    def ended(self, trial):
        super().ended(trial)
        self.n_ended += 1
        if self.n_ended % 100 == 0:
            self.most_files = max(self.most_files, len(os.listdir("/proc/self/fd")))
            self.most_processes = max(self.most_processes, n_descendants())
        if self.n_ended % self.every == 0:
            row = (
                self.n_ended,
                time.process_time(),
                self.backend.now(),
                megabytes(),
                self.most_files,
                self.most_processes,
            )
            self.rows.append(row)
            print(f"{self.n_ended} trials", file=sys.stderr)
            self.most_files = self.most_processes = 0


def megabytes():
    """Resident memory of this process."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 2**20


def n_descendants():
    children = collections.defaultdict(list)
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            children[int(path.read_text().rsplit(")", 1)[1].split()[1])].append(int(path.parent.name))
    found, new = 0, [os.getpid()]
    while new:
        new = [child for pid in new for child in children[pid]]
        found += len(new)
    return found


def ask_and_go_on(trial, trials, max_epochs):
    halving(trial, trials, max_epochs)


def measure(n_workers, n_trials=None, seconds=1e9, every=10**9, constants=None, rule=ask_and_go_on):
    """(tuner, seconds, processor seconds of this process, watch, [(time, wait)] of the reports) of one run."""
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        path = pathlib.Path(folder) / "objective.py"
        path.write_text(OBJECTIVE)
        warm_up(path, n_workers)
        problem = describe(path, lambda space: {**space, **(constants or {})})
        results = Results.create(pathlib.Path(folder) / "run", problem.space, problem.metric, problem.mode, {})
        backend = LocalBackend(path, results.folder / "logs", n_workers=n_workers)
        args = argparse.Namespace(objective=path, searcher="random", hours=seconds / 3600)
        watch = Watch(args, backend, results, every=every)
        searcher, limits = RandomSearch(problem.space), {"seconds": seconds, "n_trials": n_trials}
        rules = {"rule": rule, "max_epochs": problem.space["epochs"]}
        tuner = Tuner(problem.space, searcher, backend, results, n_workers, **limits, **rules, show=watch)
        before = time.process_time()
        with contextlib.redirect_stdout(nowhere):
            tuner.run()
        used, wall = time.process_time() - before, backend.now()
        results.close()
        cells = [line.split(b",") for line in (results.folder / "reports.csv").read_bytes().splitlines()[1:]]
    return tuner, wall, used, watch, [(float(row[3]), float(row[5])) for row in cells]


def many_trials(n_trials):
    print("trials  ms of tuner per trial  ms per trial  memory MB  most open files  most processes")
    *_, watch, _ = measure(8, n_trials, every=max(1, n_trials // 10), rule=halving)
    rows = [(0, 0.0, 0.0, 0, 0, 0), *watch.rows]
    for (n0, used0, wall0, *_), (n, used, wall, memory, files, processes) in itertools.pairwise(rows[1:]):
        per = 1000 / (n - n0)
        print(
            f"{n:6} {(used - used0) * per:22.2f} {(wall - wall0) * per:13.2f} {memory:10.1f} {files:16} {processes:15}"
        )


def many_workers(seconds):
    print("\nworkers  trials/s  ms of tuner per trial  (objective with one report)")
    for n_workers in (4, 16, 64, 128):
        tuner, wall, used, *_ = measure(n_workers, seconds=seconds, constants={"epochs": 1})
        n = sum(trial.status == "done" for trial in tuner.trials)
        print(f"{n_workers:7} {n / wall:9.1f} {1000 * used / max(1, n):22.2f}")


def many_reports(seconds):
    print("\nworkers  reports/s asked for  served  ms of tuner per report  median wait ms  99% ms  longest ms")
    for n_workers, rate in [(4, 1000), (16, 1000), (64, 1000), (64, 2000), (64, 4000), (4, 0), (64, 0)]:
        constants = {"epochs": 10**9, "pause": n_workers / rate if rate else 0.0}
        _, _, used, _, reports = measure(n_workers, seconds=seconds, constants=constants)
        waits = sorted(wait for now, wait in reports if seconds / 2 <= now < seconds)  # when all have started
        n, asked = len(waits), rate or "no limit"
        if not waits:
            print(f"{n_workers:7} {asked:>20}  no report in the second half of {seconds} s")
            continue
        at = [1000 * waits[int(share * (n - 1))] for share in (0.5, 0.99, 1.0)]
        print(
            f"{n_workers:7} {asked:>20} {2 * n / seconds:7.0f} {1000 * used / len(reports):23.2f} "
            f"{at[0]:15.2f} {at[1]:7.1f} {at[2]:11.1f}"
        )


def main():
    parser = command.parser("load", __doc__)
    parser.add_argument("--trials", type=natural, default=10_000, help="of the first part; 0 leaves it out")
    parser.add_argument("--seconds", type=natural, default=8, help="of each run of the other parts; 0 leaves them out")
    args = parser.parse_args()
    if args.trials:
        many_trials(args.trials)
    if args.seconds:
        many_workers(args.seconds)
        many_reports(args.seconds)


if __name__ == "__main__":
    command.run("load")
