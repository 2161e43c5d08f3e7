"""Compares searchers and stopping rules on recorded runs: hours of training replayed in seconds on a simulated clock.

    python -m experiments.replay results/DIR experiments/runs/*.jsonl --searcher gp --stopping asha --stopping none
    python -m experiments.replay results/DIR --searcher my_searcher.py:Mine --stopping my_rule.py:my_rule

The tuner's own loop, searcher and rule; only training is replaced, by a surrogate made of the recorded curves (see
experiments/curves.py; how well it predicts held-out curves is printed first). Record with `run.py --searcher random
--stopping none`: what a rule ends early cannot be known. Every searcher meets every rule. Repetition i has seed i for all:
pairs start alike. "Error" is what was observed, 1 - metric where more is better, the best so far.
"""

import csv
import math
import pathlib
import sys
import textwrap

import numpy as np

from experiments import command
from experiments.curves import Surrogate, quality, read
from experiments.simulated import MemoryResults, SimulatedBackend, SimulatedTuner
from hpo.arguments import find_rule, find_searcher
from hpo.searchers import SEARCHERS
from hpo.stopping import RULES
from hpo.trial import n_threads
from run import eta, positive, positive_int

MINUTES = (10, 20, 30, 60, 90, 180)
COLUMNS = ["method", "repetition", "seconds", "epochs", "error", "trials"]


# ---- One run ---------------------------------------------------------------------------------------------------------
class History(MemoryResults):
    """Keeps (seconds, epochs trained in all trials, best loss, trials started) of each improvement."""

    def __init__(self):
        super().__init__()
        self.rows, self.best = [], np.inf
        self.n_trials = self.n_epochs = 0

    def append_config(self, trial, seen):
        self.n_trials += 1

    def append_report(self, trial, metrics, now):
        point = super().append_report(trial, metrics, now)
        self.n_epochs += point[0] - (trial.curve[-1][0] if trial.curve else 0)
        if point[1] < self.best:
            self.best = point[1]
            self.rows.append(self.row(now))
        return point

    def row(self, now):
        best = self.best if math.isfinite(self.best) else math.nan  # none yet
        return now, self.n_epochs, best, self.n_trials


def run(surrogate, method, seed, seconds, n_workers):
    """Rows (k, 4) of one run: seconds, epochs trained so far, lowest error so far, trials; the last is its end.

    method: (searcher, rule), names as on run.py's command line, or (searcher, rule, options of find_rule).
    """
    searcher, rule, *options = method
    # a stream of noise that is not the searcher's
    space, history, backend = surrogate.space, History(), SimulatedBackend(surrogate.objective, 2**32 + seed)
    settings = {"n_workers": n_workers, "seconds": seconds, "max_epochs": surrogate.max_epochs}
    with command.blaming(f"{searcher} + {rule}, repetition {seed}"):
        searcher = find_searcher(searcher)(space, seed, surrogate.max_epochs)
        tuner = SimulatedTuner(space, searcher, backend, history, rule=find_rule(rule, *options), **settings)
        tuner.run()
    rows = np.array([*history.rows, history.row(backend.now())])
    rows[:, 2] += surrogate.sign < 0  # from a loss of -accuracy to an error
    return rows


_surrogate = None  # of a process of the pool


def _receive(surrogate):
    global _surrogate
    _surrogate = surrogate


def _run(*arguments):
    return run(_surrogate, *arguments)


def run_all(surrogate, about, methods, args):
    """({method's name: [rows of each repetition]}, title) of methods {name: (searcher, rule, ...)}; prints and saves them."""
    keys, seconds = [(name, i) for i in range(args.repetitions) for name in methods], 3600 * args.hours
    calls = {(name, i): (methods[name], i, seconds, args.workers) for name, i in keys}
    with command.in_processes(_run, calls, args.processes, initializer=_receive, initargs=(surrogate,)) as ended:
        found = {key: future.result() for key, future in ended}
    runs = {name: [found[name, i] for i in range(args.repetitions)] for name in methods}
    for name, of_method in runs.items():
        if not any(rows[-1, 1] for rows in of_method):
            raise command.Failed(f"{name}: no trial reports in {args.hours:g} hours; give more --hours")
    title = f"error, median [quartiles] of {args.repetitions} replayed runs, {args.workers} workers; {about}"
    print("", *table(runs, args.hours, title), sep="\n")
    args.results.mkdir(parents=True, exist_ok=True)
    save(runs, args.results / "runs.csv")
    print(f"\n{args.results / 'runs.csv'}")
    return runs, title


# ---- What came out ---------------------------------------------------------------------------------------------------
def errors_at(runs, at, column=0):
    """(len(runs), len(at)) lowest errors when column (0: seconds, 1: epochs) has come to `at`; NaN before the first."""
    table = np.full((len(runs), len(at)), np.nan)
    for i, rows in enumerate(runs):
        n = np.searchsorted(rows[:, column], at, side="right")
        table[i, n > 0] = rows[n[n > 0] - 1, 2]
    return table


def quartiles(table):
    """(3, columns) lower quartile, median, upper quartile; a run without a result counts as the worst of all."""
    return np.quantile(np.where(np.isnan(table), np.nanmax(table), table), (0.25, 0.5, 0.75), axis=0)


def table(runs, hours, title):
    """Lines of text: median error and quartiles at some minutes, and what was trained, for each method."""
    minutes = [m for m in MINUTES if m <= 60 * hours] or [60 * hours]
    heads = "".join(f"{f'{m:g} min':>24}" for m in minutes)
    width = max(map(len, runs))
    lines = [title, f"{'':<{width}}{heads}{'epochs':>8}{'trials':>8}"]
    for name, of_method in runs.items():
        low, middle, high = quartiles(errors_at(of_method, 60.0 * np.array(minutes)))
        cells = [f"{m:.4f} [{a:.4f} {b:.4f}]".rjust(24) for a, m, b in zip(low, middle, high)]
        epochs, trials = (np.median([rows[-1, column] for rows in of_method]) for column in (1, 3))
        lines.append(f"{name:<{width}}{''.join(cells)}{epochs:>8.0f}{trials:>8.0f}")
    return lines


def save(runs, path):
    """Every improvement of every run, and each run's end, as a CSV."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for name, of_method in runs.items():
            for i, rows in enumerate(of_method):
                writer.writerows([name, i, round(s, 1), int(e), f"{error:.6g}", int(n)] for s, e, error, n in rows)


def plot(runs, path, hours, title=""):
    """Median and quartiles of the error over time and over epochs trained; says so when there is no matplotlib."""
    try:
        import matplotlib
    except ImportError:
        print("no picture: pip install matplotlib", file=sys.stderr)
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    n_epochs = min(rows[-1, 1] for of_method in runs.values() for rows in of_method)
    axes_of = [(0, 60, 3600 * hours, "minutes, simulated"), (1, 1, n_epochs, "epochs trained, all trials")]
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    tops = []
    for axis, (column, unit, end, label) in zip(axes, axes_of):
        at = np.linspace(0.02 * end, end, 300)
        for name, of_method in runs.items():
            low, middle, high = quartiles(errors_at(of_method, at, column))
            (line,) = axis.plot(at / unit, middle, label=name)
            tops.append(high[15])  # what comes before a twentieth of the time would hide the rest
            axis.fill_between(at / unit, low, high, color=line.get_color(), alpha=0.15, lw=0)
        axis.set(xlabel=label, xlim=(0, end / unit))
    axes[0].set_ylim(top=np.nanmax(tops))
    axes[0].set_ylabel("lowest validation error so far: median, quartiles")
    axes[0].legend()
    figure.suptitle(textwrap.fill(title, 140), fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    print(path)


# ---- Command line ----------------------------------------------------------------------------------------------------
def parser(name, description):
    made = command.parser(name, description)
    add = made.add_argument
    add("recordings", nargs="+", metavar="FOLDER", help="runs' folders, or files made by experiments.curves")
    add("--repetitions", type=positive_int, default=20)
    add("--hours", type=positive, help="simulated; default as much training as was recorded, at most 3")
    add("--workers", type=positive_int, default=4, help="simulated, at the recorded seconds; default 4")
    add("--processes", type=positive_int, default=n_threads(1), help="default: one for each core")
    add("--eta", type=eta, default=3, metavar="N", help="as in run.py; default 3")
    add("--results", type=pathlib.Path, default=pathlib.Path(f"results/{name}"), metavar="DIR")
    return made


def prepare(args, show_quality=True):
    """(Surrogate, description in a line) of recordings; prints what they are and how good the surrogate is.

    Sets args.hours where they are not given.
    """
    command.check_results(args.results)
    recording = read(args.recordings)
    print(f"{recording.about}; {recording.machine}; making a surrogate of them", flush=True)  # minutes for 1,700 curves
    surrogate = Surrogate(recording)
    if show_quality:
        print("\n".join(quality(recording)))
    jitter, spread = np.median(surrogate.residual.std(1)), surrogate.level_sd
    between = f"{spread:.1%} of the error from {surrogate.n_repetitions} repetitions" if spread else "none known"
    print(f"noise: {jitter:.1%} of the error from epoch to epoch, level between repetitions: {between}")
    if args.hours is None:
        seconds = [curve.seconds.sum() for curve in recording.curves]
        args.hours = min(3.0, float(f"{max(sum(seconds) / args.workers, *seconds) / 3600:.2g}"))
    print(f"{args.repetitions} repetitions of {args.hours:g} hours each, simulated", flush=True)
    return surrogate, recording.about


def main(arguments=None):
    made = parser("replay", __doc__)
    add = made.add_argument
    add("--searcher", action="append", metavar="NAME", help="as in run.py; again for more; default all")
    add("--stopping", action="append", metavar="NAME", help="as in run.py; again for more; default all")
    add("--first_rung", type=positive_int, action="append", metavar="EPOCH", help="again for more; default 1")
    add("--quick", action="store_true", help="does not check the surrogate")
    args = made.parse_args(arguments)
    with command.checking(made):
        methods = {}
        for searcher in args.searcher or SEARCHERS:
            for rule in args.stopping or RULES:
                for first in args.first_rung or [1]:
                    find_searcher(searcher), find_rule(rule)
                    suffix = f" {first}" if len(args.first_rung or []) > 1 else ""
                    short = " + ".join(name.rpartition("/")[2] for name in (searcher, rule)) + suffix
                    name = short if short not in methods else f"{searcher} + {rule}{suffix}"
                    methods[name] = (searcher, rule, first, args.eta)
        surrogate, about = prepare(args, not args.quick)
    runs, title = run_all(surrogate, about, methods, args)
    plot(runs, args.results / "replay.png", args.hours, title)


if __name__ == "__main__":
    command.run("replay")
