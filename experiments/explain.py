"""Recomputes the suggestions of a run from its folder, and shows why one of them was made.

    python -m experiments.explain results/DIR       all of them; exit code 1 when one differs
    python -m experiments.explain results/DIR 17    why trial 17 has its configuration

A suggestion depends only on the trials before it, the seed and the searcher. So it comes out equal
on the same machine, as long as the searcher's file is unchanged. That file is run: explain only
folders that you trust.
"""

from collections import Counter

import numpy as np

from experiments import command
from hpo.journal import SIGN, load, load_run
from hpo.searchers import GPSearch, add_epoch, cost_features
from hpo.space import Choice, domains, encode, snap
from hpo.tuner import last_epoch, suggest


def recompute(folder, run, trial_id):
    """(searcher, trials before this one, (config, origin) that it suggests then)."""
    options, before = run["arguments"], load(folder, before=trial_id)
    max_epochs = last_epoch(run["space"], options["epochs_name"])
    searcher = command.find_searcher(options["searcher"])(run["space"], options["seed"], max_epochs)
    return searcher, before, suggest(searcher, run["space"], before)


def check_all(folder, run):
    """Prints the suggestions that come out different; returns whether there are none."""
    trials, n_different = [trial for trial in load(folder) if trial.origin != "start"], 0
    for trial in trials:
        *_, found = recompute(folder, run, trial.id)
        if found != (trial.config, trial.origin):
            n_different += 1
            print(f"trial {trial.id}: {trial.config}, {trial.origin}; recomputed {found}")
    print(f"{len(trials) - n_different} of {len(trials)} suggestions are recomputed equal")
    return n_different == 0


def explain(folder, run, trial_id):
    """Prints why a trial has its configuration; returns whether it is recomputed equal."""
    searcher, before, suggestion = recompute(folder, run, trial_id)
    trial = load(folder)[trial_id]
    print(f"trial {trial.id}, origin {trial.origin}:")
    for name in domains(run["space"]):
        print(f"  {name:<24}{trial.config[name]}")
    counts = Counter(other.status for other in before)
    print("before it:", ", ".join(f"{n} {status}" for status, n in counts.items()) or "nothing")
    if trial.origin == "start":
        print("a start configuration: no searcher was asked")
        return True
    is_equal = suggestion == (trial.config, trial.origin)
    print("recomputed:", "equal" if is_equal else "DIFFERENT: searcher or machine has changed")
    if isinstance(searcher, GPSearch) and trial.origin == "model":
        model = searcher.model(before, np.random.default_rng([searcher.seed, len(before)]))
        x = encode(run["space"], trial.config)[None]
        show_model(run, model)
        show_prediction(run, searcher, model, before, x)
        show_neighbours(run, searcher, model, before, x)
    return is_equal


def show_model(run, model):
    """Prints the settings that were fitted."""
    names, columns = [], []  # columns: of an encoded configuration
    for name, domain in domains(run["space"]).items():
        is_choice = isinstance(domain, Choice)
        columns += [f"{name}={value!r}" for value in domain.values] if is_choice else [name]
        names.append(name)
    lengthscales, ridge, *variances = model.split(model.theta)
    print("\nlengthscales, the most influential first (a range has length 1):")
    for i in np.argsort(lengthscales, kind="stable"):
        print(f"  {[*names, '(epoch)'][i]:<24}{lengthscales[i]:.3g}")
    largest = np.argsort(-np.abs(ridge[: len(columns)]), kind="stable")[:6]
    print("combination:", "  ".join(f"{ridge[i]:+.2g} {columns[i]}" for i in largest))
    print("standard deviation {:.3g}, noise {:.3g}".format(*model.unit * np.sqrt(variances)))


def show_prediction(run, searcher, model, before, x):
    """Prints what the model says of a point x (1, d), in the metric's own units."""
    to_metric = lambda y: SIGN[run["mode"]] * (model.centre + model.unit * y.mean())
    if model.category is not None:
        print("the turn of a category that was tried least: to improve on its own best trial")
    (mu, sigma), best = model.predict(x), model.predict(model.tried)[0].min(axis=0)
    deviation = model.unit * np.hypot(sigma[0, 0], mu.std())
    print(f"\nprediction there: {to_metric(mu):.5g} +- {deviation:.2g}")
    print(f"to be improved on: {to_metric(best):.5g}, what pending trials may find included")
    anywhere = snap(run["space"], np.random.default_rng(0).random((2000, x.shape[1])))
    score, others = (searcher.score(model, X, best) for X in (x, anywhere))
    random = f"median {np.median(others):.3f}, best {others.max():.3f}"
    print(f"acquisition {score[0]:.3f}; random configurations: {random}")
    if model.costs is not None:
        print(f"seconds per epoch: predicted {np.exp(cost_features(x) @ model.costs)[0]:.3g}")


def show_neighbours(run, searcher, model, before, x):
    points = np.concatenate([x, searcher.encode(before)])
    if model.with_epoch:
        points = add_epoch(points, 1.0)
    correlation = model.correlation(model.theta, points[:1], points[1:])[0][0]
    ranked = sorted(zip(correlation, before), key=lambda pair: -pair[0])
    ended = [pair for pair in ranked if pair[1].status != "running"]
    print("\nthe nearest ended trials, and all pending ones:")
    for nearness, other in [*ended[:5], *(p for p in ranked if p[1].status == "running")]:
        value = "" if other.value is None else f"{SIGN[run['mode']] * other.value:.5g}"
        config = ", ".join(f"{name}={other.config[name]}" for name in domains(run["space"]))
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
            return 0 if check_all(args.folder, run) else 1
        return 0 if explain(args.folder, run, args.trial) else 1


if __name__ == "__main__":
    command.run("explain")
