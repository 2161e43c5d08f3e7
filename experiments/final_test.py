"""The honest end of a run of the main job: the accuracy on the test images, which nothing has seen before.

    python -m experiments.final_test results/DIR [--workers 4] [--seeds 5]

The best of hundreds of noisy maxima is lucky. So the run's three best configurations are trained again with new seeds on
the 50,000 images; the highest mean validation accuracy picks configuration and epoch; that is trained on all 60,000 with
each seed, and each network measured once on the 10,000 test images. DIR/final_test.csv has every accuracy: what is there is
not trained again, so an interrupted call can go on; and what is to be measured is noted there as NaN before the first
measurement, so that a run's folder has one final test, whatever a second call asks for. DIR/best.pt is the first seed's
network, not the luckiest:

    saved = torch.load("results/DIR/best.pt", weights_only=True)
    model = train.mlp_fashion_mnist.build(saved["config"]); model.load_state_dict(saved["weights"])
"""

import math
import pathlib

import numpy as np
import torch
from filelock import FileLock, Timeout

from experiments import command
from hpo.objective import set_generators
from hpo.results import load, load_run
from hpo.space import config_key, domains
from hpo.trial import n_threads
from run import positive_int
from train import fashion_mnist, mlp_fashion_mnist
from train.mlp_fashion_mnist import N_TRAIN, Adam, build, config_space, train, validate

COLUMNS = {"part": str, "trial": int, "seed": int, "epoch": int, "accuracy": float}
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


def recorded(path, part):
    """{(trial, seed): {epoch: accuracy}} of what an earlier call has written."""
    found = {}
    for row in command.read_rows(path, COLUMNS):
        if row["part"] == part:
            found.setdefault((row["trial"], row["seed"]), {})[row["epoch"]] = row["accuracy"]
    return found


def train_missing(part, jobs, path, workers, save=None):
    """{(trial, seed): [accuracies]}; jobs: {(trial, seed): (config, epochs)}. Rows are written as trainings end."""
    on_all, have, threads = part == "test", recorded(path, part), n_threads(workers)
    epochs = {key: [n] if on_all else range(1, n + 1) for key, (_, n) in jobs.items()}  # in the file
    found = {key: [have.get(key, {}).get(epoch, math.nan) for epoch in at] for key, at in epochs.items()}
    calls = {
        key: (config, SEED + key[1], threads, n, on_all)
        for key, (config, n) in jobs.items()
        if np.isnan(found[key]).any()
    }
    with command.in_processes(fit, calls, workers, threads) as ended:
        for (trial, seed), future in ended:
            found[trial, seed], weights = future.result()
            if save and seed == 0:
                save(weights)
            rows = [[part, trial, seed, *of_epoch] for of_epoch in zip(epochs[trial, seed], found[trial, seed])]
            command.append_rows(path, COLUMNS, rows)
            print(f"{part}: trial {trial}, seed {seed}: {max(found[trial, seed]):.4f}", flush=True)
    return found


def choose(run, trials, path, args):
    """(trial, epoch) with the highest mean validation accuracy over new seeds."""
    trials = best_trials(trials, args.best)
    n_epochs = args.epochs or run["space"]["epochs"]
    jobs = {(trial.id, seed): (trial.config, n_epochs) for trial in trials for seed in range(args.seeds)}
    found = train_missing("validation", jobs, path, args.workers)
    print("\nvalidation accuracy: in the run, then mean and standard deviation over new seeds at the best epoch")
    means = {}
    for trial in trials:
        table = np.array([found[trial.id, seed] for seed in range(args.seeds)])  # (seeds, epochs)
        epoch = int(table.mean(0).argmax())
        means[trial.id] = table[:, epoch].mean(), epoch + 1
        print(f"trial {trial.id:4d}: {-trial.value:.4f}   {mean_and_spread(table[:, epoch])} at epoch {epoch + 1}")
    chosen = max(means, key=lambda i: means[i][0])
    return chosen, means[chosen][1]


def mean_and_spread(accuracies):
    spread = f" +- {np.std(accuracies, ddof=1):.4f}" if len(accuracies) > 1 else ""  # of one nothing is known
    return f"{np.mean(accuracies):.4f}{spread}"


def summary(accuracies):
    mean = np.mean(accuracies)
    sampling = math.sqrt(mean * (1 - mean) / 10_000)  # binomial: what another 10,000 images would change
    about = f"over {len(accuracies)} seed{'s' * (len(accuracies) > 1)} (and +- {sampling:.4f} for the choice of images)"
    return f"test accuracy {mean_and_spread(accuracies)} {about}"


def examine(folder):
    """(run, trials, {(trial, seed): epoch} of a test that has begun, lock); ValueError when there can be none, or no other."""
    run, lock, path = load_run(folder), FileLock(folder / ".lock", timeout=0), folder / "final_test.csv"
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(f"{folder}: a run or another final test is using it; wait for its end") from None
    trials = load(folder)
    needed = {*domains(config_space), "epochs", "dataset", "dataset_path"}
    objective = pathlib.Path(run["directory"], run["arguments"].get("objective", ""))
    is_ours = not objective.is_file() or objective.samefile(
        mlp_fashion_mnist.__file__
    )  # it is the one that is trained here
    if set(domains(run["space"])) - set(domains(config_space)) or needed - set(run["space"]) or not is_ours:
        raise ValueError(f"{folder}: expected a run of train/mlp_fashion_mnist.py, got {objective}")
    if not best_trials(trials, 1):
        raise ValueError(f"{folder}: no trial has a value; there is nothing to test")
    tests = recorded(path, "test")
    begun = {key: epoch for key, of_epoch in tests.items() for epoch in of_epoch}
    for trial, _ in begun:
        if not 0 <= trial < len(trials):
            raise ValueError(f"{path}, column trial: expected one of the {len(trials)} of the run, got {trial}")
    accuracies = [tests[key][epoch] for key, epoch in begun.items()]
    if begun and not np.isnan(accuracies).any():
        raise ValueError(
            f"{path}: the test images have been measured, trial {trial} at epoch {max(begun.values())}: "
            f"{summary(accuracies)}; a second look would tune on them: for another test, tune into another folder"
        )
    fashion_mnist.prepare(run["space"]["dataset"], run["space"]["dataset_path"])
    return run, trials, begun, lock


def main(arguments=None):
    parser = command.parser("final_test", __doc__)
    add = parser.add_argument
    add("folder", metavar="DIR", type=pathlib.Path, help="the folder of a finished run")
    add("--best", type=positive_int, default=3, help="how many configurations; default 3")
    add("--seeds", type=positive_int, default=5)
    add("--epochs", type=positive_int, help="default: those of the run")
    add("--workers", type=positive_int, default=4)
    args = parser.parse_args(arguments)
    path = args.folder / "final_test.csv"
    with command.checking(parser):
        run, trials, begun, _lock = examine(args.folder)  # two at once would look twice
    if begun:
        print("the test has begun: it goes on as chosen then, whatever --best, --seeds and --epochs are now")
    else:
        trial, epoch = choose(run, trials, path, args)
        begun = {(trial, seed): epoch for seed in range(args.seeds)}
        command.append_rows(path, COLUMNS, [["test", *key, epoch, math.nan] for key in begun])
    (trial, _), epoch = next(iter(begun.items()))
    print(f"\ntrial {trial} is trained on all 60,000 images for {epoch} epochs, with {len(begun)} seeds")
    config = trials[trial].config

    def save(weights):
        torch.save({"config": config, "epochs": epoch, "seed": SEED, "weights": weights}, args.folder / "best.pt")

    found = train_missing("test", {key: (config, epoch) for key in begun}, path, args.workers, save)
    accuracies = [accuracy for (accuracy,) in found.values()]
    if run["space"]["dataset"] == "synthetic":
        print("STAND-IN DATA: these are generated images, not FashionMNIST")
    print(summary(accuracies))
    each = ", ".join(f"{accuracy:.4f}" for accuracy in sorted(accuracies))
    print(f"each: {each}; {path}, {args.folder / 'best.pt'}")


if __name__ == "__main__":
    command.run("final_test", "trainings that had ended are in final_test.csv: the same command goes on")
