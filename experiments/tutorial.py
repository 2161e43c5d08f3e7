"""The curves of Syne Tune's tutorial, replayed: random search and Gaussian process, with and without successive halving.

    python -m experiments.tutorial experiments/runs/*.jsonl

Lowest validation error against wall-clock time and against epochs trained, median and quartiles, as CSV and picture; and
the paired difference of Gaussian process + halving to random search + halving: the median over repetitions with the same
seed, and its 95% bootstrap interval. --searcher FILE.py:CLASS puts another searcher in the Gaussian process's place.
"""

import csv

import numpy as np

from experiments import command
from experiments.replay import MINUTES, errors_at, parser, plot, prepare, run_all
from hpo.arguments import find_rule, find_searcher
from run import positive_int


def paired_difference(first, second, seconds, n_bootstrap=5000):
    """[(median over the repetitions of the error of `first` minus that of `second`, 95% interval, pairs)] at `seconds`.

    Pairs of which one has no result yet are left out.
    """
    rng, found = np.random.default_rng(0), []
    for column in (errors_at(first, seconds) - errors_at(second, seconds)).T:
        pairs = column[~np.isnan(column)]
        resampled = (
            np.median(pairs[rng.integers(len(pairs), size=(n_bootstrap, len(pairs)))], axis=1) if len(pairs) else []
        )
        interval = np.quantile(resampled, (0.025, 0.975)) if len(pairs) else (np.nan, np.nan)
        found.append((np.median(pairs) if len(pairs) else np.nan, *interval, len(pairs)))
    return found


def label(searcher, rule):
    return searcher if rule == "none" else f"{searcher} + {rule}"


def main(arguments=None):
    made = parser("tutorial", __doc__)
    made.add_argument("--searcher", default="gp", metavar="NAME", help="beside random; default gp")
    made.add_argument("--stopping", default="halving", metavar="NAME", help="beside none; default halving")
    made.add_argument("--first_rung", type=positive_int, default=1, metavar="EPOCH", help="as in run.py; default 1")
    args = made.parse_args(arguments)
    with command.checking(made):
        find_searcher(args.searcher), find_rule(args.stopping)
        surrogate, about = prepare(args)
    pairs = [(searcher, rule) for rule in ("none", args.stopping) for searcher in ("random", args.searcher)]
    methods = {label(*pair): (*pair, args.first_rung, args.eta) for pair in pairs}
    runs, title = run_all(surrogate, about, methods, args)
    minutes = [m for m in MINUTES if m <= 60 * args.hours] or [60 * args.hours]
    first, second = (label(searcher, args.stopping) for searcher in (args.searcher, "random"))
    differences = paired_difference(runs[first], runs[second], 60.0 * np.array(minutes))
    print(f"\n{first} minus {second}, paired: median [95% bootstrap interval]")
    for m, (middle, low, high, n) in zip(minutes, differences):
        print(f"{m:>6g} min {middle:+.4f} [{low:+.4f} {high:+.4f}], {n} pairs")
    with open(args.results / "difference.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["minutes", "median", "low", "high", "pairs"])
        writer.writerows([m, *(f"{value:.6g}" for value in row)] for m, row in zip(minutes, differences))
    print(f"\n{args.results / 'difference.csv'}")
    plot(runs, args.results / "tutorial.png", args.hours, title)


if __name__ == "__main__":
    command.run("tutorial")
