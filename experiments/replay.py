"""Compares searchers and stopping rules on recorded runs: hours of training replayed in seconds.

    python -m experiments.replay experiments/runs/*.jsonl        the four curves of the tutorial
    python -m experiments.replay results/DIR --searcher gp --searcher mine.py:Mine --stopping asha

The tuner's own loop, searcher and rule, on a simulated clock. Only training is replaced, by a
surrogate made of the recorded curves (experiments/curves.py). Record with `run.py --searcher random
--stopping none`: how a trial would have gone on after a rule ended it is not known. Every searcher
meets every rule, with the same seeds, so differences are paired. "Error" is the lowest observed so
far, 1 - metric where more is better. A run without a result yet counts as the worst of all.
"""

import itertools
import math

import numpy as np

from experiments import command
from experiments.compare_searchers import EACH, table
from experiments.curves import Surrogate, quality, read
from experiments.simulated import simulate_until
from hpo.trial import n_threads

MINUTES = (10, 20, 30, 60, 90, 180)


def times(seconds):
    """Seconds at which errors are noted."""
    return [*(60 * m for m in MINUTES if 60 * m < seconds), seconds]


def run(surrogate, name, seed, seconds, n_workers):
    """[lowest error at each of the times, NaN before the first], epochs trained, trials started.

    name: that of a searcher and a rule.
    """
    (searcher, rule), space = name.split(EACH), surrogate.space
    searcher = command.find_searcher(searcher)(space, seed, surrogate.max_epochs)
    settings = {"rule": command.find_rule(rule), "max_epochs": surrogate.max_epochs}
    settings |= {"n_workers": n_workers, "seed": 2**32 + seed}  # not the searcher's
    found, trials = simulate_until(times(seconds), searcher, space, surrogate.objective, **settings)
    losses = np.array([math.nan if best is None else best[0] for best in found])
    # from a loss of -accuracy to an error
    return losses + (surrogate.sign < 0), sum(trial.n_epochs for trial in trials), len(trials)


_surrogate = None  # of a process of the pool: to send it with each call takes seconds


def _receive(surrogate):
    global _surrogate
    _surrogate = surrogate


def _run(*arguments):
    return run(_surrogate, *arguments)


def report(runs, seconds):
    """Lines: errors, what was trained, and differences to the first method.

    runs: {name: [what `run` returned, for each repetition]}.
    """
    heads, rows = {at: f"{at / 60:g} min" for at in times(seconds)}, {}
    for name, own in runs.items():
        errors = np.array([found for found, *_ in own])
        errors = np.where(np.isnan(errors), np.fmax.reduce(errors), errors)
        rows[name] = {
            ("replay", i): dict(zip(heads, found)) | {"epochs": n_epochs, "trials": n_trials}
            for i, (found, (_, n_epochs, n_trials)) in enumerate(zip(errors, own))
        }
    return table(rows, heads, {"epochs": "epochs", "trials": "trials"})


def main(arguments=None):
    parser = command.parser("replay", __doc__)
    add, positive_int = parser.add_argument, command.positive_int
    add("recordings", nargs="+", metavar="DIR", help="runs, or files of experiments/runs/")
    add("--searcher", action="append", metavar="NAME", help="as in run.py; again for more")
    add("--stopping", action="append", metavar="NAME", help="as in run.py; again for more")
    add("--repetitions", type=positive_int, default=20)
    add("--hours", type=command.positive, default=3.0, help="of each run, simulated; default 3")
    add("--workers", type=positive_int, default=4, help="simulated; default 4")
    add("--quick", action="store_true", help="does not check the surrogate")
    args = parser.parse_args(arguments)
    with command.checking(parser):
        searchers, rules = args.searcher or ["random", "gp"], args.stopping or ["halving", "none"]
        methods = [searcher + EACH + rule for rule in rules for searcher in searchers]
        _ = [*map(command.find_searcher, searchers), *map(command.find_rule, rules)]
        recording = read(args.recordings)
        print(f"{recording.about}; {recording.machine}", flush=True)
        surrogate = Surrogate(recording)  # minutes for 1,700 curves
    if not args.quick:
        print(quality(recording))
    settings = 3600 * args.hours, args.workers
    keys = itertools.product(range(args.repetitions), methods)
    calls = {(name, i): (name, i, *settings) for i, name in keys}
    found = dict(command.in_processes(_run, calls, n_threads(1), _receive, (surrogate,)))
    runs = {name: [found[name, i] for i in range(args.repetitions)] for name in methods}
    print(f"\nerror, mean [95% interval] of {args.repetitions} runs, {args.workers} workers")
    print(*report(runs, settings[0]), sep="\n")


if __name__ == "__main__":
    command.run("replay")
