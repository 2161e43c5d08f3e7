"""What each ingredient of GPSearch is worth: it is taken away, everything else stays.

    python -m experiments.ablate --problems smooth:40-59 fail:40-59 --seeds 1
    python -m experiments.ablate --curves --stopping halving --problems cross:40-49 agree:40-49

This is experiments.compare_searchers with all its options, and with the settings below as the
searchers. Look at the differences to gp: below 0, it is better without the ingredient. Decide the
problems and the rule before you look at the numbers.
"""

from experiments import command, compare_searchers

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


def main(arguments=None):
    compare_searchers.main(arguments, ["gp", *INGREDIENTS.values()], "ablate", __doc__)
    for title, name in INGREDIENTS.items():
        print(f"{name}: without {title}")


if __name__ == "__main__":
    command.run("ablate", "runs that had ended are kept: the same command continues")
