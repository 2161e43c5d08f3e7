"""Recomputes the suggestions of a run from its folder, and shows why one of them was made.

    python -m experiments.explain results/DIR       all of them; exit code 1 when one differs
    python -m experiments.explain results/DIR 17    why trial 17 has its configuration

A suggestion depends only on the trials before it, the seed and the searcher. So it comes out equal
on the same machine, as long as the searcher's file is unchanged. That file is run: explain only
folders that you trust.
"""

import numpy as np

from experiments import command
from hpo.journal import SIGN, load, load_run
from hpo.searchers import GPSearch, add_epoch, cost_features
from hpo.space import Choice, domains, encode, snap
from hpo.tuner import last_epoch, suggest


def recompute(folder, run, trial):
    """(searcher, trials before this one, whether its suggestion comes out equal)."""
    options, space, before = run["arguments"], run["space"], load(folder, before=trial.id)
    searcher_class = command.find_searcher(options["searcher"])
    searcher = searcher_class(space, options["seed"], last_epoch(space, options["epochs_name"]))
    found = suggest(searcher, space, before)
    if not (is_equal := found == (trial.config, trial.origin)):
        print(f"trial {trial.id}: {trial.config}, {trial.origin}; recomputed {found}")
    return searcher, before, is_equal


def check_all(folder, run):
    """Prints the suggestions that come out different; returns whether there are none."""
    trials = [trial for trial in load(folder) if trial.origin != "start"]
    n_equal = sum(recompute(folder, run, trial)[-1] for trial in trials)
    print(f"{n_equal} of {len(trials)} suggestions are recomputed equal")
    return n_equal == len(trials)


def explain(folder, run, trial_id):
    """Prints why a trial has its configuration; returns whether it is recomputed equal."""
    load(folder, before=trial_id)  # a ValueError if there is no such trial
    trial, space = load(folder)[trial_id], run["space"]
    print(f"trial {trial.id}, origin {trial.origin}:")
    for name in domains(space):
        print(f"  {name:<24}{trial.config[name]}")
    if trial.origin == "start":
        print("a start configuration: no searcher was asked")
        return True
    searcher, before, is_equal = recompute(folder, run, trial)
    print("recomputed:", "equal" if is_equal else "DIFFERENT: searcher or machine has changed")
    if isinstance(searcher, GPSearch) and trial.origin == "model":
        model = searcher.model(before, np.random.default_rng([searcher.seed, len(before)]))
        x = encode(space, trial.config)[None]
        show_settings(space, model)
        show_prediction(SIGN[run["mode"]], searcher, model, x)
        show_neighbours(SIGN[run["mode"]], searcher, model, before, x)
    return is_equal


def show_settings(space, model):
    """Prints the settings that were fitted."""
    names, columns = [*domains(space), "(epoch)"], []  # columns: of an encoded configuration
    for name, domain in domains(space).items():
        is_choice = isinstance(domain, Choice)
        columns += [f"{name}={value!r}" for value in domain.values] if is_choice else [name]
    lengthscales, ridge, *variances = model.split(model.theta)
    print("\nlengthscales, the most influential first (a range has length 1):")
    for i in np.argsort(lengthscales, kind="stable"):
        print(f"  {names[i]:<24}{lengthscales[i]:.3g}")
    largest = np.argsort(-np.abs(ridge[: len(columns)]), kind="stable")[:6]
    print("combination:", "  ".join(f"{ridge[i]:+.2g} {columns[i]}" for i in largest))
    print("standard deviation {:.3g}, noise {:.3g}".format(*model.unit * np.sqrt(variances)))


def show_prediction(sign, searcher, model, x):
    """Prints what the model says of a point x (1, d), in the metric's own units."""
    if model.category is not None:
        print("the turn of a category that was tried least: to improve on its own best trial")
    (mu, sigma), best = model.predict(x), model.predict(model.tried)[0].min(axis=0)
    expected, incumbent = (sign * (model.centre + model.unit * y.mean()) for y in (mu, best))
    deviation = model.unit * np.hypot(sigma[0, 0], mu.std())
    print(f"\nprediction there: {expected:.5g} +- {deviation:.2g}")
    print(f"to be improved on: {incumbent:.5g}, what pending trials may find included")
    anywhere = snap(searcher.space, np.random.default_rng(0).random((2000, x.shape[1])))
    score, others = (searcher.score(model, X, best) for X in (x, anywhere))
    random = f"median {np.median(others):.3f}, best {others.max():.3f}"
    print(f"acquisition {score[0]:.3f}; random configurations: {random}")
    if model.costs is not None:
        print(f"seconds per epoch: predicted {np.exp(cost_features(x) @ model.costs)[0]:.3g}")


def show_neighbours(sign, searcher, model, before, x):
    points = np.concatenate([x, searcher.encode(before)])
    if model.with_epoch:
        points = add_epoch(points, 1.0)
    correlation = model.correlation(model.theta, points[:1], points[1:])[0][0]
    ranked = sorted(zip(correlation, before), key=lambda pair: -pair[0])
    pending = [pair for pair in ranked if pair[1].status == "running"]
    ended = [pair for pair in ranked if pair[1].status != "running"]
    print("\nthe nearest ended trials, and all pending ones:")
    for nearness, other in ended[:5] + pending:
        value = "" if other.value is None else f"{sign * other.value:.5g}"
        config = ", ".join(f"{name}={other.config[name]}" for name in domains(searcher.space))
        about = f"correlation {nearness:.3f}  {other.status:<11} {value:<10}"
        print(f"  trial {other.id:<4} {about} {config}")


def main(arguments=None):
    parser = command.parser("explain", __doc__)
    parser.add_argument("folder", metavar="DIR", help="the folder of a run")
    parser.add_argument("trial", type=int, nargs="?", help="default: recompute all suggestions")
    args = parser.parse_args(arguments)
    with command.checking(parser):
        run = load_run(args.folder)
        if args.trial is None:
            return int(not check_all(args.folder, run))
        return int(not explain(args.folder, run, args.trial))


if __name__ == "__main__":
    command.run("explain")
