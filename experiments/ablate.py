"""What each ingredient of a searcher is worth: it is taken away, everything else stays.

    python -m experiments.ablate --problems smooth:40-59 fail:40-59 --seeds 1
    python -m experiments.ablate --curves --stopping halving --problems cross:40-49 agree:40-49
    python -m experiments.ablate --searcher gp --searcher gp:n_initial=10 --half report

Prints the paired change of the mean normalised regret x 1000, with its standard error over
problems: below 0, the searcher is better without the ingredient. The default are INGREDIENTS,
against gp; with --searcher, the others against the first. Options and kept rows are those of
experiments.compare_searchers. Decide the problems and the rule before you look at the numbers.
"""

import math

import numpy as np

from experiments import command
from experiments.compare_searchers import EACH, by_group, compare, label, parse, shown_columns

INGREDIENTS = {  # taken away: the searcher without it
    "initial design": "gp:n_initial=1",
    "turns of categories": "gp:category_period=1000000",
    "draws at pending trials": "gp:n_fantasies=1",
    "scale by the first 20 losses": "gp:n_scale=1000000",
    "squashing": "gp:clip=1e9",
    "outliers as failures": "gp:outlier=1e9",
    "failures": "gp:failure_noise=1e9",
    "bowl": "gp:bowl=(0, 1e-9)",
    "ridge": "gp:ridge=(0, 1e-9)",
}


def change(mine, its_runs, column):
    """(mean, standard error over problems) of the paired differences; NaN for one problem."""
    of_problem = {}
    for key in mine.keys() & its_runs.keys():
        of_problem.setdefault(key[0], []).append(mine[key][column] - its_runs[key][column])
    means = [np.mean(differences) for differences in of_problem.values()]
    n = len(means)
    return np.mean(means), np.std(means, ddof=1) / math.sqrt(n) if n > 1 else math.nan


def table(runs, first, n_trials):
    """Lines: an ingredient each. first: the searcher that has them all."""
    titles = {name: title for title, name in INGREDIENTS.items()}
    columns, _ = shown_columns(next(iter(runs)), n_trials)
    lines = [f"{'taken away':<40}" + "".join(f"{head:>18}" for head in columns.values())]
    for method, mine in runs.items():
        name, *rule = method.split(EACH)
        its_runs = runs.get(EACH.join([first, *rule]))
        if name != first and its_runs:
            cells = [change(mine, its_runs, column) for column in columns]
            row = "".join(f"{f'{1000 * m:+.0f} +- {1000 * s:.0f}':>18}" for m, s in cells)
            lines.append(f"{EACH.join([titles.get(name, label(name)), *rule]):<40}{row}")
    return lines


def main(arguments=None):
    parser, args = parse(arguments, "ablate", __doc__)
    names = args.searcher or ["gp", *INGREDIENTS.values()]
    for group, n_problems, runs in by_group(compare(parser, args, names)):
        print(f"\n{group}: {n_problems} problems, regret x 1000 +- standard error")
        print(*table(runs, names[0], args.trials), sep="\n")


if __name__ == "__main__":
    command.run("ablate", "runs that had ended are kept: the same command continues")
