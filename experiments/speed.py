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
import resource
import tempfile
import time
from itertools import pairwise

import numpy as np

from experiments import command
from experiments.problems import PROBLEMS
from experiments.simulated import simulate
from hpo.journal import read_events
from hpo.searchers import RandomSearch
from hpo.space import sample
from hpo.stopping import halving
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
SIZES, N_TIMED = (20, 50, 100, 200, 1000, 5000), 20  # trials before a suggestion; suggestions timed


# ---- Trials and reports ----
def tuned(**options):
    """(trials, events) of a run of OBJECTIVE; what it prints as on a terminal goes nowhere."""
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as terminal:
        terminal.isatty = lambda: True  # the status line is part of the work
        path = pathlib.Path(folder, "report_once.py")
        path.write_text(OBJECTIVE)
        with contextlib.redirect_stdout(terminal):
            run = tune(path, results=pathlib.Path(folder, "run"), **options)
        return run.trials, list(read_events(run.folder))


def loop(args):
    """Prints a line for each tenth of the trials."""
    rows, every = [], max(1, args.trials // 10)

    class Measuring(RandomSearch):
        def suggest(self, trials):
            if len(trials) % every == 0:
                kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of Linux
                used, wall = time.process_time(), time.perf_counter()
                rows.append((len(trials), used, wall, kilobytes / 1024))
            return super().suggest(trials)

    trials, _ = tuned(searcher=Measuring, workers=args.workers, trials=args.trials + 1)
    n_done = sum(trial.status == "done" for trial in trials)
    rate = n_done / (trials[-1].ended - trials[0].started)
    print(f"{n_done} of {len(trials)} trials done, {args.workers} workers: {rate:.1f} a second")
    print("trials  ms of the tuner each  trials/s  memory MB")
    for (n0, used0, wall0, _), (n, used, wall, megabytes) in pairwise(rows):
        each, rate = 1000 * (used - used0) / (n - n0), (n - n0) / (wall - wall0)
        print(f"{n:6} {each:21.2f} {rate:9.1f} {megabytes:10.1f}")


def reports(args):
    """Prints what is served in the second half of some seconds, when all trials have started."""
    print("workers  reports/s  ms of the tuner each  wait of a trial: median ms, 99% ms")
    for n_workers in (args.workers, 16 * args.workers):
        used = []

        def rule(*known, used=used):
            used.append(time.process_time())
            halving(*known)  # its time counts, but no trial ends

        options = {"workers": n_workers, "hours": args.seconds / 3600, "stopping": rule}
        _, events = tuned(searcher="random", assignments=["epochs=1000000"], **options)
        late = [e for e in events if "report" in e and e["at"] >= args.seconds / 2]
        rate, each = 2 * len(late) / args.seconds, 1000 * (used[-1] - used[0]) / len(used)
        median, high = 1000 * np.quantile([e["metrics"]["wait"] for e in late], (0.5, 0.99))
        print(f"{n_workers:7} {rate:10.0f} {each:21.3f} {median:31.2f} {high:7.1f}")


# ---- Suggestions ----
def suggest(args):
    """Prints a line for each number of random trials that come first; as many suggestions warm up.

    The problem is fashion7, of seven hyperparameters, with four simulated workers.
    """
    problem = PROBLEMS["fashion7"]

    def objective(config, rng):
        yield rng.uniform(0.5, 1.5), {"loss": problem.evaluate(config, rng)}

    for n in SIZES:
        rng = np.random.default_rng(0)
        searcher = command.find_searcher(args.searcher)(problem.space, 0, 1)
        options = {"n_trials": n + 2 * N_TIMED, "n_workers": 4}
        options["start"] = [sample(problem.space, rng) for _ in range(n)]
        trials = simulate(searcher, problem.space, objective, **options)[-N_TIMED:]
        seconds = [trial.suggest_seconds for trial in trials]
        median, high = 1000 * np.quantile(seconds, (0.5, 0.95))
        print(f"{args.searcher} after {n} trials: median {median:.3g} ms, 95% {high:.3g}")


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
