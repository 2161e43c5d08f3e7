"""Compares methods on an objective of your own: runs of hpo.tune, one after the other.

    python -m experiments.repeat my_objective.py --searcher gp --searcher random --trials 40
    python -m experiments.repeat --searcher gp --stopping halving --stopping none --hours 0.5

A method is a searcher and a stopping rule. All other flags are those of run.py. Each run has a
folder RESULTS/<method>/<seed>; the same command goes on where it was interrupted. At the end there
are a picture and a table: the lowest loss after parts of the budget (nan: a run has none by then),
paired by seed. Where more is better, a loss is the metric with its sign turned.
"""

import itertools
import math
import pathlib

import numpy as np

import run as command_line
from experiments import command, compare_searchers, plot
from hpo.journal import WriteError
from hpo.tuner import RunFailed, tune

PARTS = (0.25, 0.5, 1.0)  # of the budget


def parse(arguments):
    """Our arguments, and the options of hpo.tune."""
    parser = command.parser("repeat", __doc__)
    several = {"action": "append", "metavar": "NAME", "help": "as in run.py; again for more"}
    parser.add_argument("--searcher", **several)
    parser.add_argument("--stopping", **several)
    parser.add_argument("--seeds", type=command.positive_int, default=5, help="default 5")
    parser.add_argument("--results", type=pathlib.Path, default=pathlib.Path("results/repeat"))
    args, others = parser.parse_known_args(arguments)
    of_runs = command_line.make_parser()
    of_runs.prog = parser.prog
    options = vars(of_runs.parse_args(others))
    if taken := {"seed", "resume"} & options.keys():
        parser.error(f"--{taken.pop()}: each method has the seeds 0, 1, ... of --seeds")
    return parser, args, {"objective": str(command_line.DEFAULT_OBJECTIVE)} | options


def run_all(args, options):
    """{method: [plot.Run]}, in the order of the seeds."""
    methods = itertools.product(args.searcher or ["gp", "random"], args.stopping or ["auto"])
    runs = {}
    for seed, method in itertools.product(range(args.seeds), [*methods]):
        name = " ".join(method).replace("/", "_")
        folder = args.results / name / str(seed)
        print(f"\n---- {name}, seed {seed}: {folder}", flush=True)
        own = options | {"searcher": method[0], "stopping": method[1], "seed": seed}
        has_begun = (folder / "journal.jsonl").exists()  # one that is over ends at once
        if tune(**own, **{"resume" if has_begun else "results": folder}).signal:
            raise KeyboardInterrupt
        runs.setdefault(name, []).append(plot.Run(folder))
    return runs


def report(runs, n_trials):
    """Prints the table. n_trials: None where the budget is time."""
    budget = n_trials or max(run.clock for own in runs.values() for run in own)
    heads = {part: f"{part * budget:.0f} {'trials' if n_trials else 's'}" for part in PARTS}
    rows = {name: {} for name in runs}
    for name, own in runs.items():
        for seed, run in enumerate(own):
            x, losses = run.best_by_trials() if n_trials else run.best_by_time()
            found = np.searchsorted(x, budget * np.array(PARTS), side="right")
            rows[name][0, seed] = dict(zip(PARTS, np.append(math.nan, losses)[found]))
    print(f"\nlowest loss of {run.metric} so far")
    print(*compare_searchers.table(rows, heads, {}), sep="\n")


def main(arguments=None):
    parser, args, options = parse(arguments)
    with command.checking(parser):
        try:
            runs = run_all(args, options)
        except (RunFailed, WriteError) as error:
            raise command.Failed(error) from error
    with plot.style():
        path = args.results / "compared.png"
        plot.draw_comparison(runs).savefig(path, dpi=100)
    report(runs, options.get("trials"))
    print(path)


if __name__ == "__main__":
    command.run("repeat", "the same command goes on with the runs that it has begun")
