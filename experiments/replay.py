"""Compares searchers and stopping rules on recorded runs: hours of training replayed in seconds.

    python -m experiments.replay experiments/runs/*.jsonl        the four curves of the tutorial
    python -m experiments.replay results/DIR --searcher gp --searcher mine.py:Mine --stopping asha

The tuner's own loop, searcher and rule, on a simulated clock. Only training is replaced, by a
surrogate made of the recorded curves; how well it predicts held-out curves is printed first (see
experiments/curves.py). Record with `run.py --searcher random --stopping none`: how a trial would
have gone on after a rule ended it is not known.

Every searcher meets every rule. Repetition i has seed i for all of them, so they start alike, and
differences are paired. "Error" is the lowest observed so far; it is 1 - metric where more is
better. By default: random search and the Gaussian process, with and without successive halving, as
in Syne Tune's tutorial.
"""

import csv
import math
import pathlib
import sys
import textwrap

import numpy as np

from experiments import command
from experiments.curves import Surrogate, quality, read
from experiments.simulated import SimulatedBackend, SimulatedTuner
from hpo.journal import Journal
from hpo.trial import n_threads

MINUTES = (10, 20, 30, 60, 90, 180)
COLUMNS = ["method", "repetition", "seconds", "epochs", "error", "trials"]
TUTORIAL = ["random", "gp"], ["halving", "none"]  # searchers, rules


# ---- One run -------------------------------------------------------------------------------------
class History(Journal):
    """A run in memory. It keeps a row for each improvement, see `row`."""

    def __init__(self, space):
        super().__init__({"space": space, "metric": "loss", "mode": "min"})
        self.rows, self.n_epochs, self.lowest = [], 0, math.nan

    def append(self, event):
        trial = super().append(event)
        if "report" in event:
            (before, _), (epoch, loss) = [(0, None), *trial.curve][-2:]
            self.n_epochs += epoch - before
            if not loss >= self.lowest:  # which is NaN at first
                self.lowest = loss
                self.rows.append(self.row())
        return trial

    def row(self):
        """(Seconds, epochs trained in all trials, lowest loss, trials started) so far."""
        return self.clock, self.n_epochs, self.lowest, len(self.trials)


def run(surrogate, method, seed, seconds, n_workers):
    """Rows (k, 4) of one run: seconds, epochs trained, lowest error, trials; the last is its end.

    method: the arguments (searcher, rule, first_rung, eta) of find_searcher and find_rule.
    """
    history = History(surrogate.space)
    backend = SimulatedBackend(surrogate.objective, 2**32 + seed)  # its noise is not the searcher's
    with command.blaming(f"{method[0]} + {method[1]}, repetition {seed}"):
        searcher = command.find_searcher(method[0])(surrogate.space, seed, surrogate.max_epochs)
        settings = {"rule": command.find_rule(*method[1:]), "max_epochs": surrogate.max_epochs}
        SimulatedTuner(history, searcher, backend, n_workers, seconds, **settings).run()
    history.clock = backend.now()
    rows = np.array([*history.rows, history.row()])
    rows[:, 2] += surrogate.sign < 0  # from a loss of -accuracy to an error
    return rows


_surrogate = None  # of a process of the pool


def _receive(surrogate):
    global _surrogate
    _surrogate = surrogate


def _run(*arguments):
    return run(_surrogate, *arguments)


def run_all(surrogate, methods, args):
    """{name: [rows of each repetition]} of the methods {name: method}."""
    keys = [(name, i) for i in range(args.repetitions) for name in methods]
    calls = {key: (methods[key[0]], key[1], 3600 * args.hours, args.workers) for key in keys}
    pool = command.in_processes(_run, calls, args.processes, 1, _receive, (surrogate,))
    with pool as ended:
        found = {key: future.result() for key, future in ended}
    runs = {name: [found[name, i] for i in range(args.repetitions)] for name in methods}
    for name, of_method in runs.items():
        if not any(rows[-1, 1] for rows in of_method):
            raise command.Failed(f"{name}: no report in {args.hours:g} hours; give more --hours")
    return runs


# ---- What came out -------------------------------------------------------------------------------
def errors_at(runs, at, column=0):
    """(runs, at) lowest errors where a column (0: seconds, 1: epochs) is `at`; NaN while none."""
    table = np.full((len(runs), len(at)), np.nan)
    for i, rows in enumerate(runs):
        n = np.searchsorted(rows[:, column], at, side="right")
        table[i, n > 0] = rows[n[n > 0] - 1, 2]
    return table


def quartiles(table):
    """(3, columns) quartiles; a run without a result yet counts as the worst of all."""
    return np.quantile(np.where(np.isnan(table), np.nanmax(table), table), (0.25, 0.5, 0.75), 0)


def paired_difference(first, second, at, n_bootstrap=5000):
    """(3, at) median of the errors of `first` minus those of `second`, and its 95% interval.

    Pairs of which one has no result yet are left out; NaN where none is left.
    """
    rng, columns = np.random.default_rng(0), []
    for column in (errors_at(first, at) - errors_at(second, at)).T:
        pairs = column[~np.isnan(column)]
        samples = pairs[rng.integers(max(1, len(pairs)), size=(n_bootstrap, len(pairs)))]
        interval = (
            np.quantile(np.median(samples, 1), (0.025, 0.975)) if len(pairs) else [np.nan] * 2
        )
        columns.append([np.median(pairs) if len(pairs) else np.nan, *interval])
    return np.transpose(columns)


def report(runs, hours):
    """Lines of text: errors at some minutes, what was trained, and differences to the first."""
    minutes = [m for m in MINUTES if m <= 60 * hours] or [60 * hours]
    seconds, width, (reference, *others) = 60.0 * np.array(minutes), max(map(len, runs)), runs
    lines = [" " * width + "".join(f"{m:>20g} min" for m in minutes) + "  epochs  trials"]
    for name, of_method in runs.items():
        low, middle, high = quartiles(errors_at(of_method, seconds))
        cells = "".join(f"  {m:.4f} [{a:.4f} {b:.4f}]" for a, m, b in zip(low, middle, high))
        epochs, trials = (np.median([rows[-1, column] for rows in of_method]) for column in (1, 3))
        lines.append(f"{name:<{width}}{cells}{epochs:>8.0f}{trials:>8.0f}")
    lines += ["", f"minus {reference}, paired by seed: median [95% bootstrap interval]"]
    for name in others:
        difference = paired_difference(runs[name], runs[reference], seconds)
        cells = "".join(f" {m:+.4f} [{a:+.4f} {b:+.4f}]" for m, a, b in difference.T)
        lines.append(f"{name:<{width}}{cells.replace('0.', '.')}")
    return lines if others else lines[:-2]


def save(runs, path):
    """Every improvement of every run, and each run's end, as a CSV."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for name, of_method in runs.items():
            for i, rows in enumerate(of_method):
                for seconds, epochs, error, trials in rows:
                    cells = round(seconds, 1), int(epochs), f"{error:.6g}", int(trials)
                    writer.writerow([name, i, *cells])


def plot(runs, path, hours, title):
    """Median and quartiles of the error over time and over epochs; needs matplotlib."""
    try:
        import matplotlib
    except ImportError:
        print("no picture: pip install matplotlib", file=sys.stderr)
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    n_epochs = min(rows[-1, 1] for of_method in runs.values() for rows in of_method)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    tops = []
    for axis, column, unit, end in zip(axes, (0, 1), (60, 1), (3600 * hours, n_epochs)):
        at = np.linspace(0.02 * end, end, 300)
        for name, of_method in runs.items():
            low, middle, high = quartiles(errors_at(of_method, at, column))
            (line,) = axis.plot(at / unit, middle, label=name)
            axis.fill_between(at / unit, low, high, color=line.get_color(), alpha=0.15, lw=0)
            tops.append(high[15])  # what comes before a twentieth of the time would hide the rest
        axis.set(xlabel=["minutes, simulated", "epochs, all trials"][column], xlim=(0, end / unit))
    axes[0].set(ylabel="lowest error so far: median, quartiles", ylim=(None, np.nanmax(tops)))
    axes[0].legend()
    figure.suptitle(textwrap.fill(title, 140), fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    print(path)


# ---- Command line --------------------------------------------------------------------------------
def main(arguments=None):
    parser = command.parser("replay", __doc__)
    add = parser.add_argument
    add("recordings", nargs="+", metavar="DIR", help="runs, or files made by experiments.curves")
    add("--searcher", action="append", metavar="NAME", help="as in run.py; again for more")
    add("--stopping", action="append", metavar="NAME", help="as in run.py; again for more")
    add("--first_rung", type=command.positive_int, default=1, metavar="EPOCH", help="as in run.py")
    eta = command.number(int, lambda n: n > 1, "an integer > 1")
    add("--eta", type=eta, default=3, metavar="N", help="as in run.py")
    add("--repetitions", type=command.positive_int, default=20)
    add("--hours", type=command.positive, help="default: what was recorded, at most 3")
    add("--workers", type=command.positive_int, default=4, help="simulated; default 4")
    add("--processes", type=command.positive_int, default=n_threads(1), help="default: all cores")
    add("--quick", action="store_true", help="does not check the surrogate")
    add("--results", type=pathlib.Path, default=pathlib.Path("results/replay"), metavar="DIR")
    args = parser.parse_args(arguments)
    with command.checking(parser):
        methods = {}
        for rule in args.stopping or TUTORIAL[1]:
            for searcher in args.searcher or TUTORIAL[0]:
                command.find_searcher(searcher), command.find_rule(rule)
                methods[f"{searcher} + {rule}"] = searcher, rule, args.first_rung, args.eta
        command.check_results(args.results)
        recording = read(args.recordings)
        print(f"{recording.about}; {recording.machine}", flush=True)
        surrogate = Surrogate(recording)  # minutes for 1,700 curves
    if not args.quick:
        print("\n".join(quality(recording)))
    jitter, level = np.median(surrogate.residual.std(1)), surrogate.level_sd
    print(f"noise: {jitter:.1%} of the error from epoch to epoch, {level:.1%}", end=" ")
    print(f"between repetitions ({surrogate.n_repetitions} were recorded)")
    if args.hours is None:
        seconds = [curve.seconds.sum() for curve in recording.curves]
        args.hours = min(3.0, float(f"{max(sum(seconds) / args.workers, *seconds) / 3600:.2g}"))
    print(f"{args.repetitions} repetitions of {args.hours:g} hours, {args.workers} workers")
    runs = run_all(surrogate, methods, args)
    title = f"error, median [quartiles] of {args.repetitions} replayed runs; {recording.about}"
    print("", title, *report(runs, args.hours), sep="\n")
    args.results.mkdir(parents=True, exist_ok=True)
    save(runs, args.results / "runs.csv")
    print(f"\n{args.results / 'runs.csv'}")
    plot(runs, args.results / "replay.png", args.hours, title)


if __name__ == "__main__":
    command.run("replay")
