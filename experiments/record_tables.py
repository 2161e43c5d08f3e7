"""Records the data of the "real" problems in experiments/problems.py: experiments/tables/.

    FASHION_MNIST_MIRROR=../shared/fashion-mnist python -m experiments.record_tables [NAME ...]

A grid is a table of losses (n_1, ..., n_d, n_repetitions). Each configuration is trained several
times on random splits with random seeds; a training that diverged is NaN. Takes half an hour on one
core and needs scikit-learn.

`fashion7` was recorded by this file of commit 2ac5384: 1,000 random configurations of the space of
train/mlp_fashion_mnist.py, trained twice each, smoothed by a small ensemble of networks as YAHPO
Gym does (2109.03670). Such a smoother favours no searcher, as a Gaussian process or forest would.
"""

import functools
import itertools
import sys
import warnings

import numpy as np
import torch
from sklearn import datasets
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler, StandardScaler
from sklearn.svm import SVC

from experiments import command
from experiments.problems import GRIDS, TABLES
from train import fashion_mnist
from train.mlp_fashion_mnist import Adam, build, train, validate

KERNEL_DATA = {
    "kernel_diabetes": datasets.load_diabetes,
    "kernel_cancer": datasets.load_breast_cancer,
}


# ---- One training: (configuration, seed) -> loss ----
def svm_digits(config, seed):
    """Error rate of a support vector machine."""
    scaler = {"none": FunctionTransformer, "standard": StandardScaler, "minmax": MinMaxScaler}
    machine = SVC(C=config["C"], gamma=config["gamma"], kernel=config["kernel"])
    model = make_pipeline(scaler[config["scaler"]](), machine)
    return validated(model, datasets.load_digits, 600, seed)


def mlp_digits(config, seed):
    """Error rate of a network of one hidden layer after 10 epochs."""
    names = ("learning_rate_init", "hidden_layer_sizes", "batch_size", "alpha", "activation")
    settings = dict(zip(names, config.values()))
    network = MLPClassifier(max_iter=10, random_state=seed, **settings)
    model = make_pipeline(FunctionTransformer(lambda x: x / 16), network)
    try:
        return validated(model, datasets.load_digits, 600, seed)
    except ValueError:  # the weights have overflowed
        return np.nan


def boosting_cancer(config, seed):
    """Log loss of gradient boosting."""
    model = GradientBoostingClassifier(random_state=seed, **config)
    return validated(model, datasets.load_breast_cancer, 284, seed, with_log_loss=True)


def forest_wine(config, seed):
    """Log loss of a random forest."""
    model = RandomForestClassifier(random_state=seed, **config)
    return validated(model, datasets.load_wine, 89, seed, with_log_loss=True)


def validated(model, load, n_train, seed, with_log_loss=False):
    """The loss on as many rows as it is trained on, or on those that are left."""
    x, y = load(return_X_y=True)
    sizes = {"train_size": n_train, "test_size": min(n_train, len(y) - n_train)}
    x, x_val, y, y_val = train_test_split(x, y, **sizes, random_state=seed)
    model.fit(x, y)
    return (
        log_loss(y_val, model.predict_proba(x_val))
        if with_log_loss
        else 1 - model.score(x_val, y_val)
    )


@functools.cache
def fashion_data():
    name = fashion_mnist.prepare("fashion_mnist", "data")
    images, labels, _, _ = fashion_mnist.load(name, "data")
    return torch.from_numpy(images).flatten(1), torch.from_numpy(labels).long()


def fashion4(config, seed):
    """Error rate of train/mlp_fashion_mnist.py after 3 epochs with 3,000 images, on 4,000."""
    torch.manual_seed(seed)
    config = {"n_units_2": 64, "dropout_2": 0.0, "weight_decay": 1e-8, **config}
    images, labels = fashion_data()
    rows = torch.randperm(50000)[:3000]  # the last 10,000 are for validation, as in the example
    model = build(config)
    optimizer = Adam(model.parameters(), config["learning_rate"], config["weight_decay"])
    for _ in range(3):
        train(model, optimizer, images[rows], labels[rows], config["batch_size"])
    return 1 - validate(model, images[50000:54000], labels[50000:54000])


# ---- Recording ----
def record_grid(name, n_repetitions=4):
    """Table (n_1, ..., n_d, n_repetitions) of losses."""
    space, losses = GRIDS[name], []
    for values in itertools.product(*(domain.values for domain in space.values())):
        config = dict(zip(space, values))
        losses.append([globals()[name](config, seed) for seed in range(n_repetitions)])
    shape = [len(domain.values) for domain in space.values()]
    table = np.reshape(losses, [*shape, n_repetitions])
    np.savez_compressed(TABLES / f"{name}.npz", loss=table.astype(np.float16))


def record_kernel_data(name, n_rows=300):
    """Standardised rows X (n_rows, n_features) and targets y of a bundled data set."""
    X, y = KERNEL_DATA[name](return_X_y=True)
    rows = np.random.default_rng(0).permutation(len(y))[:n_rows]
    X, y = X[rows], y[rows].astype(float)
    X, y = (X - X.mean(0)) / X.std(0), (y - y.mean()) / y.std()
    np.savez_compressed(TABLES / f"{name}.npz", X=X.astype(np.float32), y=y.astype(np.float32))


def main():
    warnings.filterwarnings("ignore")  # networks that have not converged are the point
    torch.set_num_threads(1)
    for name in sys.argv[1:] or [*KERNEL_DATA, *GRIDS]:
        print(name, flush=True)
        (record_kernel_data if name in KERNEL_DATA else record_grid)(name)


if __name__ == "__main__":
    command.run("record_tables")
