"""Recomputes the suggestions of a run from its folder, and shows why one of them was made.

    python -m experiments.explain results/DIR 17     why the model suggested trial 17's configuration
    python -m experiments.explain results/DIR        recomputes all of them; exit code 1 when one differs

A suggestion depends on the rows that the searcher had seen, the seed and the searcher alone, so it comes out equal on the
same machine while the searcher's file is as it was.
"""

import argparse
import math
import os
import sys

# as run.py does: the order in which threads add numbers up would show in the last digits
os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import numpy as np

from hpo.results import ResultsError, load, load_before, load_run
from hpo.space import domains, encode, snap
from run import find_searcher, last_epoch

N_NEAREST = 5


def make_searcher(run):
    """The searcher of a run, from its run.json."""
    arguments = run["arguments"]
    max_epochs = last_epoch(run["space"], arguments["epochs_name"])
    return find_searcher(arguments["searcher"])(run["space"], arguments["seed"], max_epochs)


def recompute(folder, trial_ids=None):
    """Yields (trial as recorded, (config, origin) as recomputed) for the suggestions of a run, served ones left out."""
    run = load_run(folder)
    for trial in load(folder):
        if trial.origin != "start" and (trial_ids is None or trial.id in trial_ids):
            yield trial, make_searcher(run).suggest(load_before(folder, trial.id))


def check_all(folder):
    """Prints the suggestions that differ; returns their number."""
    n, different = 0, 0
    for trial, suggestion in recompute(folder):
        n += 1
        if suggestion != (trial.config, trial.origin):
            different += 1
            print(f"trial {trial.id}: recorded {trial.config} ({trial.origin}), recomputed {suggestion}")
    print(f"{n - different} of {n} suggestions are recomputed equal")
    return different


def explain(folder, trial_id):
    """Prints why a trial has its configuration."""
    run = load_run(folder)
    searcher, before = make_searcher(run), load_before(folder, trial_id)
    trial = load(folder)[trial_id]
    print(f"trial {trial.id}, origin {trial.origin}:")
    for name in domains(run["space"]):
        print(f"  {name:<24}{trial.config[name]}")
    counts = {status: sum(t.status == status for t in before) for status in dict.fromkeys(t.status for t in before)}
    print(f"seen: {', '.join(f'{n} {status}' for status, n in counts.items()) or 'nothing'}")
    if trial.origin == "start":
        print("a start configuration: no searcher was asked")
        return
    same = searcher.suggest(before) == (trial.config, trial.origin)
    print("recomputed: equal" if same else "recomputed: DIFFERENT; the searcher's file or the machine has changed")
    model = (
        searcher.model(before, np.random.default_rng([searcher.seed, trial_id])) if trial.origin == "model" else None
    )
    if model is None:
        print("no model was asked")
        return
    show_model(run, searcher, model, before, trial)


def show_model(run, searcher, model, before, trial):
    names, losses = [*domains(run["space"]), "(epoch)"], model.losses
    lengthscales, share, signal, noise = losses.process.scales(losses.theta)
    centre, unit = model.units
    sign = -1.0 if run["mode"] == "max" else 1.0
    of_parameter = dict(zip(losses.process.groups, lengthscales))
    print("\nlengthscales, the most influential first (ranges have length 1, up to the scale of the domain):")
    for i in sorted(of_parameter, key=of_parameter.get):
        print(f"  {names[i]:<24}{of_parameter[i]:.3g}")
    print(f"additive share {share:.2f}, standard deviation of the function {unit * math.sqrt(signal):.3g}, ", end="")
    print(f"of the noise {unit * math.sqrt(noise):.3g}, in {run['metric']}")

    x = encode(run["space"], trial.config)[None]
    rng = np.random.default_rng(0)
    others = searcher.score(model, snap(run["space"], rng.random((2000, x.shape[1]))))
    mu, sigma = searcher.predict(losses, x)
    score = searcher.score(model, x)[0]
    print(f"\nprediction there: {sign * (centre + unit * mu.mean()):.5g} +- {unit * sigma[0, 0]:.2g}, ", end="")
    print(f"incumbent {sign * (centre + unit * losses.best.mean()):.5g} (lowest posterior mean)")
    print(f"acquisition {score:.3f}; random configurations: median {np.median(others):.3f}, best {others.max():.3f}")
    if model.failures:
        mu, sigma = searcher.predict(model.failures, x)
        print(f"failures: predicted {mu[0, 0]:.2f} +- {sigma[0, 0]:.2f}, where 1 is none and -1 is failure")

    here, there = (searcher.at_last_epoch(losses, X) for X in (x * searcher.scale, searcher.encode(before)))
    k = losses.process.kernel(losses.theta, here, there)[0] - losses.process.prior.mean_variance
    correlation = k / signal
    for title, chosen in (
        ("nearest ended trials", [i for i in np.argsort(-correlation) if before[i].status != "running"][:N_NEAREST]),
        ("pending", [i for i in np.argsort(-correlation) if before[i].status == "running"]),
    ):
        print(f"\n{title}:" if len(chosen) else f"\n{title}: none")
        for i in chosen:
            value = "" if before[i].value is None else f"{sign * before[i].value:.5g}"
            config = ", ".join(f"{name}={shorten(before[i].config[name])}" for name in domains(run["space"]))
            print(f"  trial {i:<4} correlation {correlation[i]:.3f}  {before[i].status:<8} {value:<9} {config}")


def shorten(value):
    return f"{value:.3g}" if isinstance(value, float) else value


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folder", metavar="DIR", help="the folder of a run")
    parser.add_argument("trial", type=int, nargs="?", help="default: recompute all suggestions")
    args = parser.parse_args(arguments)
    try:
        if args.trial is None:
            return 1 if check_all(args.folder) else 0
        explain(args.folder, args.trial)
    except (ResultsError, ValueError) as error:
        print(f"explain: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
