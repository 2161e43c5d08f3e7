"""Compares searchers and stopping rules on recorded runs: hours of training replayed in seconds.

    python -m experiments.replay experiments/runs/*.jsonl        the four curves of the tutorial
    python -m experiments.replay results/DIR --searcher gp --searcher mine.py:Mine --stopping asha

The tuner's own loop, searcher and rule, on a simulated clock. Only training is replaced, by a
surrogate made of the recorded curves; how well it predicts held-out curves is printed first (see
experiments/curves.py). Record with `run.py --searcher random --stopping none`: how a trial would
have gone on after a rule ended it is not known.

Every searcher meets every rule. Repetition i has seed i for all of them, so differences are paired.
"Error" is the lowest observed so far; it is 1 - metric where more is better. A run without a result
yet counts as the worst of all. By default: random search and the Gaussian process, with and without
successive halving, as in Syne Tune's tutorial.
"""

import itertools
import math
import pathlib
import sys

import numpy as np

from experiments import command, plot
from experiments.compare_searchers import EACH, table
from experiments.curves import Surrogate, quality, read
from experiments.simulated import Milestones, simulate
from hpo.trial import n_threads

MINUTES = (10, 20, 30, 60, 90, 180)
TUTORIAL = ["random", "gp"], ["halving", "none"]  # searchers, rules


# ---- One run ----
def times(seconds):
    """(T,) seconds at which errors are noted: for the table, and sixty for the picture."""
    of_table = [60 * m for m in MINUTES if 60 * m < seconds]
    return np.unique([*of_table, *np.linspace(0, seconds, 61)[1:]])


def run(surrogate, method, seed, seconds, n_workers):
    """(lowest errors (T,) at the times, NaN before the first; epochs trained; trials started).

    method: names (searcher, rule).
    """
    journal = Milestones(surrogate.space, times(seconds))
    with command.blaming(f"{EACH.join(method)}, repetition {seed}"):
        searcher = command.find_searcher(method[0])(surrogate.space, seed, surrogate.max_epochs)
        settings = {"rule": command.find_rule(method[1]), "max_epochs": surrogate.max_epochs}
        settings |= {"journal": journal, "n_workers": n_workers, "seconds": seconds}
        noise_seed = 2**32 + seed  # not the searcher's
        trials = simulate(searcher, surrogate.space, surrogate.objective, noise_seed, **settings)
    journal.note(math.inf)
    losses = np.array([math.nan if best is None else best[0] for best in journal.best])
    # from a loss of -accuracy to an error
    return losses + (surrogate.sign < 0), sum(trial.n_epochs for trial in trials), len(trials)


_surrogate = None  # of a process of the pool


def _receive(surrogate):
    global _surrogate
    _surrogate = surrogate


def _run(*arguments):
    return run(_surrogate, *arguments)


def run_all(surrogate, methods, args):
    """{name: [what `run` returns, for each repetition]} of the methods."""
    keys = itertools.product(range(args.repetitions), methods)
    settings = 3600 * args.hours, args.workers
    calls = {(name, i): (name.split(EACH), i, *settings) for i, name in keys}
    pool = command.in_processes(_run, calls, args.processes, 1, _receive, (surrogate,))
    with pool as ended:
        found = {key: future.result() for key, future in ended}
    runs = {name: [found[name, i] for i in range(args.repetitions)] for name in methods}
    for name, own in runs.items():
        if not any(n_epochs for _, n_epochs, _ in own):
            raise command.Failed(f"{name}: no report in {args.hours:g} hours; give more --hours")
    return runs


# ---- What came out ----
def errors(runs):
    """(runs, T) lowest errors so far; a run without one has the worst of all, NaN if all are."""
    table = np.array([errors for errors, _, _ in runs])
    return np.where(np.isnan(table), np.fmax.reduce(table), table)


def report(runs, seconds):
    """Lines of text: errors at some minutes, what was trained, and differences to the first."""
    heads = {60 * m: f"{m:g} min" for m in MINUTES if 60 * m <= seconds}
    heads = heads or {seconds: f"{seconds / 60:g} min"}
    columns, rows = [np.abs(times(seconds) - at).argmin() for at in heads], {}
    for name, own in runs.items():
        rows[name] = {
            ("replay", i): dict(zip(heads, found)) | {"epochs": n_epochs, "trials": n_trials}
            for i, (found, (_, n_epochs, n_trials)) in enumerate(zip(errors(own)[:, columns], own))
        }
    return table(rows, heads, {"epochs": "epochs", "trials": "trials"})


def draw(runs, seconds, path):
    """Median and quartiles of the error over time; needs matplotlib."""
    with plot.style():
        figure, (axis,) = plot.new_figure(7, 4.5)
        curves = {name: (times(seconds) / 60, errors(own)) for name, own in runs.items()}
        plot.draw_bands(axis, curves)
        # what comes before the first of the times of the table would hide the rest
        tops = [np.quantile(table[:, 3], 0.75) for _, table in curves.values()]
        axis.set(xlabel="minutes, simulated", ylabel="lowest error so far", xlim=(0, seconds / 60))
        axis.set_ylim(None, np.nanmax(tops))
        plot.add_legend(figure, axis, 1)
        figure.savefig(path, dpi=100)
    print(path)


# ---- Command line ----
def main(arguments=None):
    parser = command.parser("replay", __doc__)
    add = parser.add_argument
    add("recordings", nargs="+", metavar="DIR", help="runs, or files made by experiments.curves")
    add("--searcher", action="append", metavar="NAME", help="as in run.py; again for more")
    add("--stopping", action="append", metavar="NAME", help="as in run.py; again for more")
    add("--repetitions", type=command.positive_int, default=20)
    add("--hours", type=command.positive, help="default: what was recorded, at most 3")
    add("--workers", type=command.positive_int, default=4, help="simulated; default 4")
    add("--processes", type=command.positive_int, default=n_threads(1), help="default: all cores")
    add("--quick", action="store_true", help="does not check the surrogate")
    add("--results", type=pathlib.Path, default=pathlib.Path("results/replay"), metavar="DIR")
    args = parser.parse_args(arguments)
    with command.checking(parser):
        methods = []
        for rule in args.stopping or TUTORIAL[1]:
            for searcher in args.searcher or TUTORIAL[0]:
                command.find_searcher(searcher), command.find_rule(rule)
                methods.append(EACH.join((searcher, rule)))
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
    title = f"error, mean [95% interval] of {args.repetitions} replayed runs; {recording.about}"
    print("", title, *report(runs, 3600 * args.hours), sep="\n")
    args.results.mkdir(parents=True, exist_ok=True)
    try:
        draw(runs, 3600 * args.hours, args.results / "replay.png")
    except command.Failed as error:  # there is no matplotlib
        print(error, file=sys.stderr)


if __name__ == "__main__":
    command.run("replay")
