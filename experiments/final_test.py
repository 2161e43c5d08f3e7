"""The honest end of a run of the main job: the accuracy on the test images, which nothing has seen before.

    python -m experiments.final_test results/DIR [--workers 4] [--seeds 5]

The best of hundreds of noisy maxima is lucky. So the run's three best configurations are trained again with new seeds on
the 50,000 images; the highest mean validation accuracy picks configuration and epoch; that is trained on all 60,000 with
each seed, and each network measured once on the 10,000 test images. DIR/final_test.csv has every accuracy (what is there is
not trained again, and the test images not looked at twice), DIR/best.pt the first seed's network, not the luckiest:

    saved = torch.load("results/DIR/best.pt", weights_only=True)
    model = train.mlp_fashion_mnist.build(saved["config"]); model.load_state_dict(saved["weights"])
"""

import argparse
import csv
import math
import multiprocessing
import os
import pathlib
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed

import numpy as np
import torch

from hpo.objective import THREAD_VARIABLES, set_generators
from hpo.results import load, load_run
from hpo.space import config_key, domains
from hpo.trial import n_threads
from train import fashion_mnist
from train.mlp_fashion_mnist import N_TRAIN, Adam, build, config_space, train, validate

COLUMNS = ["part", "trial", "seed", "epoch", "accuracy"]
SEED = 1_000_000  # the first of the new seeds: trials' own are hashes of theirs


def fit(config, seed, threads, n_epochs, on_all=False):
    """([validation accuracy of each epoch], weights); on_all: trains on all 60,000, [test accuracy after the last epoch]."""
    torch.set_flush_denormal(True)  # as the objective does
    device = "cuda" if torch.cuda.is_available() else "cpu"
    arrays = fashion_mnist.load(config["dataset"], config["dataset_path"])
    images, labels, test_images, test_labels = (torch.from_numpy(array).to(device) for array in arrays)
    images, test_images = images.flatten(1), test_images.flatten(1)
    labels, test_labels = labels.long(), test_labels.long()
    set_generators(seed, threads)
    model = build(config).to(device)
    optimizer = Adam(model.parameters(), config["learning_rate"], config["weight_decay"])
    n, accuracies = len(images) if on_all else N_TRAIN, []
    for _ in range(n_epochs):
        train(model, optimizer, images[:n], labels[:n], config["batch_size"])
        if not on_all:
            accuracies.append(validate(model, images[n:], labels[n:]))
    if on_all:
        accuracies.append(validate(model, test_images, test_labels))
    return accuracies, {name: tensor.cpu() for name, tensor in model.state_dict().items()}


def best_trials(trials, n):
    """The n best trials of different configurations, the best first."""
    found = {}
    for trial in sorted((trial for trial in trials if trial.value is not None), key=lambda trial: trial.value):
        found.setdefault(config_key(trial.config), trial)
    return list(found.values())[:n]


def recorded(path):
    """{(part, trial, seed): {epoch: accuracy}} of what an earlier call has written."""
    found = {}
    if path.exists():
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                key = row["part"], int(row["trial"]), int(row["seed"])
                found.setdefault(key, {})[int(row["epoch"])] = float(row["accuracy"])
    return found


def train_missing(part, jobs, path, workers, save=None):
    """{(trial, seed): [accuracies]}; jobs: {(trial, seed): (config, epochs)}. Rows are written as trainings end."""
    on_all = part == "test"
    have = recorded(path)
    wanted = {key: [n] if on_all else list(range(1, n + 1)) for key, (_, n) in jobs.items()}  # epochs in the file
    found = {
        key: [have[part, *key][e] for e in at]
        for key, at in wanted.items()
        if set(at) <= set(have.get((part, *key), ()))
    }
    threads = n_threads(workers)
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))  # the children inherit them
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        todo = {key: job for key, job in jobs.items() if key not in found}
        futures = {
            pool.submit(fit, config, SEED + key[1], threads, n, on_all): key for key, (config, n) in todo.items()
        }
        for i, future in enumerate(as_completed(futures), 1):
            trial, seed = futures[future]
            accuracies, weights = future.result()
            found[trial, seed] = accuracies
            if save and seed == 0:
                save(weights)
            is_new = not path.exists()
            with open(path, "a", newline="") as file:
                rows = [[part, trial, seed, e, a] for e, a in zip(wanted[trial, seed], accuracies)]
                csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows] if is_new else rows)
            print(f"{part}: {i}/{len(todo)}, trial {trial}, seed {seed}: {max(accuracies):.4f}", flush=True)
    return found


def final_test(folder, n_best, n_seeds, n_epochs, workers):
    run, trials = load_run(folder), best_trials(load(folder), n_best)
    if set(domains(run["space"])) - set(domains(config_space)) or "dataset" not in run["space"]:
        raise ValueError(
            f"{folder}: expected a run of train/mlp_fashion_mnist.py, got {run['arguments'].get('objective')}"
        )
    if not trials:
        raise ValueError(f"{folder}: no trial has a value; there is nothing to test")
    fashion_mnist.prepare(run["space"]["dataset"], run["space"]["dataset_path"])
    n_epochs = n_epochs or run["space"]["epochs"]
    path = pathlib.Path(folder) / "final_test.csv"

    jobs = {(trial.id, seed): (trial.config, n_epochs) for trial in trials for seed in range(n_seeds)}
    found = train_missing("validation", jobs, path, workers)
    print("\nvalidation accuracy: in the run, then mean and standard deviation over new seeds at the best epoch")
    means = {}
    for trial in trials:
        table = np.array([found[trial.id, seed] for seed in range(n_seeds)])  # (seeds, epochs)
        epoch = int(table.mean(0).argmax())
        means[trial.id] = table[:, epoch].mean(), epoch + 1
        spread = table[:, epoch].std(ddof=min(1, n_seeds - 1))
        print(
            f"trial {trial.id:4d}: {-trial.value:.4f}   {means[trial.id][0]:.4f} +- {spread:.4f} at epoch {epoch + 1}"
        )
    chosen = max(trials, key=lambda trial: means[trial.id][0])
    epoch = means[chosen.id][1]
    print(f"\ntrial {chosen.id} is trained on all 60,000 images for {epoch} epochs")

    def save(weights):
        about = {"config": chosen.config, "epochs": epoch, "seed": SEED, "weights": weights}
        torch.save(about, pathlib.Path(folder) / "best.pt")

    jobs = {(chosen.id, seed): (chosen.config, epoch) for seed in range(n_seeds)}
    found = train_missing("test", jobs, path, workers, save)
    accuracies = np.array([accuracy for (accuracy,) in found.values()])
    mean, spread = accuracies.mean(), accuracies.std(ddof=min(1, n_seeds - 1))
    sampling = math.sqrt(mean * (1 - mean) / 10_000)  # binomial: what another 10,000 images would change
    if run["space"]["dataset"] == "synthetic":
        print("STAND-IN DATA: these are generated images, not FashionMNIST")
    print(
        f"test accuracy {mean:.4f} +- {spread:.4f} over {n_seeds} seeds (and +- {sampling:.4f} for the choice of images)"
    )
    print(
        f"each: {', '.join(f'{accuracy:.4f}' for accuracy in sorted(accuracies))}; {path}, {path.with_name('best.pt')}"
    )


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("folder", metavar="DIR", help="the folder of a finished run")
    add("--best", type=int, default=3, help="how many configurations; default 3")
    add("--seeds", type=int, default=5)
    add("--epochs", type=int, help="default: those of the run")
    add("--workers", type=int, default=4)
    args = parser.parse_args(arguments)
    for name in ("best", "seeds", "workers"):
        if getattr(args, name) < 1:
            parser.error(f"--{name}: expected an integer >= 1, got {getattr(args, name)}")
    try:
        final_test(args.folder, args.best, args.seeds, args.epochs, args.workers)
    except ValueError as error:
        parser.exit(2, f"experiments.final_test: error: {error}\n")


if __name__ == "__main__":
    sys.exit(main())
