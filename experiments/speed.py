"""What the tuner itself costs: trials and reports per second, and the time of a suggestion.

    python -m experiments.speed --part loop        10,000 trials that report once; some minutes
    python -m experiments.speed --part reports     4 and 64 trials that report all the time
    python -m experiments.speed --part suggest     one thread

Rates compare only when taken in turn: run the command in another checkout, here, and again. "ms of
the tuner" is processor time of its process, which other work on the machine changes little.
"""

import contextlib
import os
import pathlib
import tempfile
import time
from itertools import pairwise

import numpy as np

from experiments import command
from experiments.problems import PROBLEMS
from hpo.journal import read_events
from hpo.searchers import RandomSearch
from hpo.space import sample
from hpo.stopping import halving
from hpo.trial import Trial
from hpo.tuner import tune

OBJECTIVE = """
import time
import torch  # most objectives need it: the fork server imports it once
from hpo import Reporter, uniform

config_space = {"x": uniform(0, 1), "epochs": 1}
metric, mode = "y", "min"

def objective(config):
    report, wait = Reporter(), 0.0
    for epoch in range(1, config["epochs"] + 1):
        before = time.perf_counter()
        report(epoch=epoch, y=config["x"] / epoch, wait=wait)
        wait = time.perf_counter() - before
"""
N_PENDING = 3  # trials that have no result yet when the next is suggested
SIZES, N_TIMED = (20, 50, 100, 200, 1000, 5000), 20  # trials before a suggestion; suggestions timed


# ---- Trials and reports ----
@contextlib.contextmanager
def tuned(path=None, **options):
    """Context with the Run that `tune` returned; what it prints as on a terminal goes nowhere."""
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as terminal:
        terminal.isatty = lambda: True  # the status line is part of the work
        if path is None:
            path = pathlib.Path(folder) / "report_once.py"
            path.write_text(OBJECTIVE)
        with contextlib.redirect_stdout(terminal):
            run = tune(str(path), results=pathlib.Path(folder) / "run", **options)
        yield run


def reports_of(run):
    return [event for event in read_events(run.folder) if "report" in event]


def loop(args):
    """Prints a line for each tenth of the trials."""
    rows, every = [], max(1, args.trials // 10)

    class Measuring(RandomSearch):
        def suggest(self, trials):
            if len(trials) % every == 0:
                rows.append((len(trials), time.process_time(), time.perf_counter(), *resources()))
            return super().suggest(trials)

    options = {"workers": args.workers, "trials": args.trials + 1}
    with tuned(searcher=Measuring, **options) as run:
        n_done = sum(trial.status == "done" for trial in run.trials)
        rate = n_done / (run.trials[-1].ended - run.trials[0].started)
    print(f"{n_done} of {len(run.trials)} trials done, {args.workers} workers: {rate:.1f} a second")
    print("trials  ms of the tuner each  trials/s  memory MB  open files  processes")
    for (n0, used0, wall0, *_), (n, used, wall, *found) in pairwise(rows):
        each, rate = 1000 * (used - used0) / (n - n0), (n - n0) / (wall - wall0)
        print("{:6} {:21.2f} {:9.1f} {:10.1f} {:11} {:10}".format(n, each, rate, *found))


def resources():
    """Resident memory of this process in MB, its open files, and how many processes it has."""
    n_pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    megabytes = n_pages * os.sysconf("SC_PAGESIZE") / 2**20
    return megabytes, len(os.listdir("/proc/self/fd")), len(command.children_of(os.getpid()))


def reports(args):
    """Prints what is served in the second half of some seconds, when all trials have started."""
    print("workers  reports/s  ms of the tuner each  wait of a trial: median ms, 99% ms")
    for n_workers in (args.workers, 16 * args.workers):
        used = []

        def rule(trial, trials, max_epochs, used=used):
            used.append(time.process_time())
            halving(trial, trials, max_epochs)  # its time counts, but no trial ends

        options = {"workers": n_workers, "hours": args.seconds / 3600, "stopping": rule}
        options |= {"searcher": "random", "assignments": ["epochs=1000000"]}
        with tuned(**options) as run:
            found = [event for event in reports_of(run) if event["at"] >= args.seconds / 2]
        waits = [1000 * event["metrics"]["wait"] for event in found]
        rate, each = 2 * len(waits) / args.seconds, 1000 * (used[-1] - used[0]) / len(used)
        median, high = np.quantile(waits, (0.5, 0.99))
        print(f"{n_workers:7} {rate:10.0f} {each:21.3f} {median:31.2f} {high:7.1f}")


# ---- Suggestions ----
def suggest(args):
    """Prints a line for each number of trials."""
    for n in SIZES:
        seconds = suggestion_seconds(args.searcher, n)
        median, high = 1000 * np.quantile(seconds, (0.5, 0.95))
        print(f"{args.searcher} after {n} trials: median {median:.3g} ms, 95% {high:.3g}")


def suggestion_seconds(name, n):
    """Seconds of each suggestion after n random trials with results, and N_PENDING without.

    The problem is fashion7, of seven hyperparameters. A result comes after each suggestion, so that
    there is something new to think about. As many suggestions before them warm up.
    """
    problem, rng = PROBLEMS["fashion7"], np.random.default_rng(0)
    searcher, trials, seconds = command.find_searcher(name)(problem.space, 0, 1), [], []
    for i in range(n + N_PENDING + 2 * N_TIMED):
        if i < n + N_PENDING:
            config = sample(problem.space, rng)
        else:
            before = time.perf_counter()
            config, _ = searcher.suggest(trials)
            seconds.append(time.perf_counter() - before)
        trials.append(Trial(i, config, "random", started=float(i)))
        if i >= N_PENDING:
            trial = trials[i - N_PENDING]
            trial.status, trial.ended = "done", trial.started + 1
            trial.curve = [(1, problem.evaluate(trial.config, rng))]
    return seconds[N_TIMED:]


# ---- Command line ----
def main(arguments=None):
    parts = {"loop": loop, "reports": reports, "suggest": suggest}
    parser = command.parser("speed", __doc__)
    add, positive_int = parser.add_argument, command.positive_int
    add("--part", required=True, choices=parts)
    add("--workers", type=positive_int, default=4, help="all but suggest; default 4")
    add("--trials", type=positive_int, default=10_000, help="loop; default 10,000")
    add("--seconds", type=command.positive, default=8.0, help="reports: of each run; default 8")
    add("--searcher", default="gp", metavar="NAME", help="suggest; default gp")
    args = parser.parse_args(arguments)
    with command.checking(parser):
        command.find_searcher(args.searcher)
        parts[args.part](args)


if __name__ == "__main__":
    command.run("speed")
