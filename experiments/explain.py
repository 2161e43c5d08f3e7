"""Recomputes the suggestions of a run from its folder, and shows why one of them was made.

    python -m experiments.explain results/DIR 17     why the model suggested trial 17's configuration
    python -m experiments.explain results/DIR        recomputes all of them; exit code 1 when one differs

A suggestion depends on the rows that the searcher had seen, the seed and the searcher alone, so it comes out equal on the
same machine while the searcher's file is as it was.
"""

import argparse
import math
import os
import pathlib

# as run.py does: the order in which threads add numbers up would show in the last digits
os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import numpy as np

from experiments import command
from experiments.simulated import MemoryResults, SimulatedBackend, SimulatedTuner
from hpo.arguments import find_searcher, last_epoch
from hpo.results import ResultsError, load, load_before, load_run
from hpo.searchers import GPSearch, Model, cost_features
from hpo.space import Choice, domains, encode, snap
from run import earlier_arguments

N_NEAREST = 5


def recipe(folder):
    """(run, arguments, searcher's class) of a run's folder."""
    run = load_run(folder)
    if "searcher" not in run.get("arguments", {}):
        raise ResultsError(f"{folder}/run.json: arguments: expected those of run.py, searcher and seed among them")
    args = earlier_arguments(argparse.Namespace(run=run, folder=pathlib.Path(folder)))
    return run, args, find_searcher(args.searcher)


def recompute(trial_id, before, run, args, searcher_class):
    """(searcher, (config, origin) that it suggests, as the tuner takes it) for a trial before which there were others."""
    with command.blaming(f"trial {trial_id}, {args.searcher}"):
        searcher = searcher_class(run["space"], args.seed, last_epoch(run["space"], args.epochs_name))
        tuner = SimulatedTuner(run["space"], searcher, SimulatedBackend(None), MemoryResults(), start=[], trials=before)
        return searcher, tuner._suggest()


def check_all(folder):
    """Prints the suggestions that differ, served ones left out; returns their number."""
    found, trials = recipe(folder), [trial for trial in load(folder) if trial.origin != "start"]
    n_different = 0
    for trial in trials:
        _, suggestion = recompute(trial.id, load_before(folder, trial.id), *found)
        if suggestion != (trial.config, trial.origin):
            n_different += 1
            print(f"trial {trial.id}: recorded {trial.config} ({trial.origin}), recomputed {suggestion}")
    print(f"{len(trials) - n_different} of {len(trials)} suggestions are recomputed equal")
    return n_different


def explain(folder, trial_id):
    """Prints why a trial has its configuration; returns whether it is recomputed equal."""
    run, args, searcher_class = recipe(folder)
    before, trial = load_before(folder, trial_id), load(folder)[trial_id]
    print(f"trial {trial.id}, origin {trial.origin}:")
    for name in domains(run["space"]):
        print(f"  {name:<24}{trial.config[name]}")
    counts = {status: sum(t.status == status for t in before) for status in dict.fromkeys(t.status for t in before)}
    print(f"seen: {', '.join(f'{n} {status}' for status, n in counts.items()) or 'nothing'}")
    if trial.origin == "start":
        print("a start configuration: no searcher was asked")
        return True
    searcher, suggestion = recompute(trial_id, before, run, args, searcher_class)
    same = suggestion == (trial.config, trial.origin)
    print("recomputed: equal" if same else "recomputed: DIFFERENT; the searcher's file or the machine has changed")
    model = None
    if isinstance(searcher, GPSearch) and trial.origin == "model":
        model = searcher.model(before, np.random.default_rng([searcher.seed, trial_id]))
    if isinstance(model, Model):
        show_model(run, searcher, model, before, trial)
    else:
        is_gp = isinstance(searcher, GPSearch)
        print(f"origin {trial.origin}: not the model's choice" if is_gp else f"{args.searcher} has no model to show")
    return same


def column_names(space):
    """Of each column of the encoded configurations: the hyperparameter's name, or 'name=value' of a category."""
    names = []
    for name, domain in domains(space).items():
        is_choice = isinstance(domain, Choice)
        names += [f"{name}={value!r}" for value in domain.values] if is_choice else [name]
    return names


def show_model(run, searcher, model, before, trial):
    column = searcher.category_in_turn(before)
    if column is not None:
        model = searcher.with_incumbent_of(column, model)
        print(f"the turn of {column_names(run['space'])[column]}, tried least, to improve on its own best trial")
    names, losses = [*domains(run["space"]), "(epoch)"], model.losses
    lengthscales, ridge, share, signal, noise = losses.process.scales(losses.theta)
    centre, unit = model.units
    sign = -1.0 if run["mode"] == "max" else 1.0
    print("\nlengthscales, the most influential first (ranges have length 1, up to the scale of the domain):")
    for i in np.argsort(lengthscales, kind="stable"):
        print(f"  {names[i]:<24}{lengthscales[i]:.3g}")
    weights = sorted(zip(ridge, column_names(run["space"])), key=lambda pair: -abs(pair[0]))
    print("combination that matters as such:", "  ".join(f"{weight:+.2g} {name}" for weight, name in weights[:6]))
    print(f"additive share {share:.2f}, standard deviation of the function {unit * math.sqrt(signal):.3g}, ", end="")
    print(f"of the noise {unit * math.sqrt(noise):.3g}, in {run['metric']}")

    x = encode(run["space"], trial.config)[None]
    rng = np.random.default_rng(0)
    others = searcher.score(model, snap(run["space"], rng.random((2000, x.shape[1]))))
    mu, sigma = searcher.predict(losses, x)
    score = searcher.score(model, x)[0]
    print(
        f"\nprediction there: {sign * (centre + unit * mu.mean()):.5g} +- {unit * np.hypot(sigma[0, 0], mu.std()):.2g}, ",
        end="",
    )
    target = sign * (centre + unit * (losses.best.mean() - model.least))
    print(f"to be improved on: {target:.5g}, what pending trials may find included")
    print(f"acquisition {score:.3f}; random configurations: median {np.median(others):.3f}, best {others.max():.3f}")
    if model.failures:
        mu, sigma = searcher.predict(model.failures, x)
        print(f"failures: predicted {mu[0, 0]:.2f} +- {sigma[0, 0]:.2f}, where 1 is none and -1 is failure")

    if model.costs is not None:
        print(f"seconds per epoch: predicted {math.exp((cost_features(x) @ model.costs)[0]):.3g}")

    here, there = (searcher.at_epoch(losses, X) for X in (x * searcher.scale, searcher.encode(before) * searcher.scale))
    process = losses.process
    k = process.kernel(losses.theta, here, there)[0] - process.mean_kernel(here, there)[0]
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
    parser = command.parser("explain", __doc__)
    parser.add_argument("folder", metavar="DIR", help="the folder of a run")
    parser.add_argument("trial", type=int, nargs="?", help="default: recompute all suggestions")
    args = parser.parse_args(arguments)
    with command.checking(parser):
        is_equal = not check_all(args.folder) if args.trial is None else explain(args.folder, args.trial)
    return 0 if is_equal else 1


if __name__ == "__main__":
    command.run("explain")
