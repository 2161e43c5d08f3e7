"""The honest end of a run of the main job: accuracy on the test images, which nothing has seen yet.

    python -m experiments.final_test results/DIR [--workers 4]

The best of hundreds of noisy maxima is lucky. So the three best configurations are trained again
with new seeds, and the highest mean validation accuracy picks configuration and epoch. That is
trained on all 60,000 images with each seed, and each network is measured once on the 10,000 test
images. DIR/final_test.csv has every accuracy, so an interrupted call can go on, and first of all
the choice, as NaN, so a run has one final test. DIR/best.pt has the first seed's network:

    saved = torch.load("results/DIR/best.pt", weights_only=True)
    model = train.mlp_fashion_mnist.build(saved["config"])
    model.load_state_dict(saved["weights"])
"""

import math
import os
import pathlib

import numpy as np
import torch
from filelock import FileLock

from experiments import command
from hpo.journal import load, load_run
from hpo.objective import set_generators
from hpo.trial import n_threads
from train import fashion_mnist, mlp_fashion_mnist
from train.mlp_fashion_mnist import N_TRAIN, Adam, build, config_space, train, validate

COLUMNS = {"part": str, "trial": int, "seed": int, "epoch": int, "accuracy": float}
N_BEST, N_SEEDS = 3, 5
FIRST_SEED = 1_000_000


def fit(config, seed, threads, n_epochs, on_all):
    """({epoch: validation accuracy}, weights); on_all: trains on all, {n_epochs: test accuracy}."""
    torch.set_flush_denormal(True)  # as the objective does
    device = "cuda" if torch.cuda.is_available() else "cpu"
    arrays = fashion_mnist.load(config["dataset"], config["dataset_path"])
    images, labels, test_images, test_labels = (torch.from_numpy(a).to(device) for a in arrays)
    images, labels = images.flatten(1), labels.long()
    set_generators(seed, threads)
    model = build(config).to(device)
    optimizer = Adam(model.parameters(), config["learning_rate"], config["weight_decay"])
    n, accuracies = len(images) if on_all else N_TRAIN, {}
    test = test_images.flatten(1), test_labels.long()
    for epoch in range(1, n_epochs + 1):
        train(model, optimizer, images[:n], labels[:n], config["batch_size"])
        if epoch == n_epochs or not on_all:
            accuracies[epoch] = validate(model, *(test if on_all else (images[n:], labels[n:])))
    return accuracies, {name: tensor.cpu() for name, tensor in model.state_dict().items()}


def recorded(path, part):
    """{(trial, seed): {epoch: accuracy}} of what has been written."""
    found = {}
    for row in command.read_rows(path, COLUMNS):
        if row["part"] == part:
            found.setdefault((row["trial"], row["seed"]), {})[row["epoch"]] = row["accuracy"]
    return found


def train_missing(part, jobs, path, workers):
    """What is recorded, once all jobs {(trial, seed): (config, epochs)} are."""
    found, threads, calls = recorded(path, part), n_threads(workers), {}
    for (trial, seed), (config, n_epochs) in jobs.items():
        if math.isnan(found.get((trial, seed), {}).get(n_epochs, math.nan)):
            calls[trial, seed] = (config, FIRST_SEED + seed, threads, n_epochs, part == "test")
    with command.in_processes(fit, calls, workers, threads) as ended:
        for (trial, seed), future in ended:
            accuracies, weights = future.result()
            if part == "test" and seed == 0:
                saved = {"config": jobs[trial, seed][0], "weights": weights}
                torch.save(saved, path.with_name("best.pt"))
            rows = [[part, trial, seed, *point] for point in accuracies.items()]
            command.append_rows(path, COLUMNS, rows)
            print(f"{part}: trial {trial}, seed {seed}: {max(accuracies.values()):.4f}", flush=True)
    return recorded(path, part)


def choose(trials, n_epochs, path, workers):
    """(trial, epoch) with the highest mean validation accuracy over new seeds."""
    jobs = {(t.id, seed): (t.config, n_epochs) for t in trials for seed in range(N_SEEDS)}
    found = train_missing("validation", jobs, path, workers)
    means = {}
    for trial in trials:
        curves = np.array([list(found[trial.id, seed].values()) for seed in range(N_SEEDS)])
        at = int(curves.mean(0).argmax())
        means[trial.id, at + 1] = curves[:, at].mean()
        text = f"{mean_and_sd(curves[:, at])} with new seeds at epoch {at + 1}"
        print(f"trial {trial.id}: accuracy {-trial.value:.4f} in the run, {text}")
    return max(means, key=means.get)


def mean_and_sd(accuracies):
    return f"{np.mean(accuracies):.4f} +- {np.std(accuracies, ddof=1):.4f}"


def check(folder, run, trials, tests):
    """ValueError where there can be no final test, or no other one."""
    objective, ours = run["arguments"]["objective"], mlp_fashion_mnist.__file__
    is_other = os.path.isfile(objective) and not os.path.samefile(objective, ours)
    if is_other or config_space.keys() - run["space"].keys() or not trials:
        got = f"got {objective} with {len(trials)} results"
        raise ValueError(f"{folder}: expected a run of train/mlp_fashion_mnist.py, {got}")
    accuracies = [accuracy for of_epoch in tests.values() for accuracy in of_epoch.values()]
    if accuracies and not np.isnan(accuracies).any():
        done = f"the test was made, accuracy {mean_and_sd(accuracies)}"
        raise ValueError(f"{folder}: {done}; a second look would tune on the test images")


def measure(folder, run, workers):
    """Chooses a configuration and epoch, unless an earlier call has, and measures its networks."""
    path, trials = folder / "final_test.csv", load(folder)
    best = sorted((t for t in trials if t.value is not None), key=lambda t: t.value)[:N_BEST]
    tests = recorded(path, "test")
    check(folder, run, best, tests)
    fashion_mnist.prepare(run["space"]["dataset"], run["space"]["dataset_path"])
    if tests:
        print("the test has begun, and goes on as chosen then")
    else:
        trial, epoch = choose(best, run["space"]["epochs"], path, workers)
        rows = [["test", trial, seed, epoch, math.nan] for seed in range(N_SEEDS)]
        command.append_rows(path, COLUMNS, rows)
        tests = recorded(path, "test")
    (trial, _), of_epoch = next(iter(tests.items()))
    epoch = max(of_epoch)  # the only one
    print(f"\ntrial {trial}: {epoch} epochs on all 60,000 images, with {len(tests)} seeds")
    job = trials[trial].config, epoch
    tests = train_missing("test", dict.fromkeys(tests, job), path, workers)
    accuracies = [of_epoch[epoch] for of_epoch in tests.values()]
    of_images = math.sqrt(np.mean(accuracies) * (1 - np.mean(accuracies)) / 10_000)  # binomial
    print(f"test accuracy {mean_and_sd(accuracies)} over seeds, +- {of_images:.4f} over images")
    print(run["note"])


def main(arguments=None):
    parser = command.parser("final_test", __doc__)
    parser.add_argument("folder", metavar="DIR", type=pathlib.Path, help="of a finished run")
    parser.add_argument("--workers", type=command.positive_int, default=4, help="default 4")
    args = parser.parse_args(arguments)
    with command.checking(parser):
        run = load_run(args.folder)
        with FileLock(args.folder / ".lock", timeout=0):  # two at once would look twice
            measure(args.folder, run, args.workers)


if __name__ == "__main__":
    command.run("final_test", "what had ended is in final_test.csv, and the same command goes on")
