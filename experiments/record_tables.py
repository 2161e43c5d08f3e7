"""Records the data of the "real" problems in experiments/problems.py, one file each in experiments/tables/.

    FASHION_MNIST_MIRROR=../shared/fashion-mnist python -m experiments.record_tables [NAME ...]

A grid problem is a table of losses (n_1, ..., n_d, n_repetitions): the whole grid, each configuration trained several
times on random splits with random seeds; NaN where a training diverged. `fashion7` is recorded at random points of the
continuous space of train/mlp_fashion_mnist.py and smoothed by a small ensemble of networks, as YAHPO Gym does
(2109.03670): a smoother that is neither a Gaussian process nor a forest favours no searcher. Half an hour on one core.
"""

import itertools
import pathlib
import sys
import time
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
from experiments.problems import FASHION7_SPACE, TABLE_SPACES, TABLES
from hpo.space import encode, sample
from train import fashion_mnist
from train.mlp_fashion_mnist import build, train, validate

SCALERS = {"none": FunctionTransformer, "standard": StandardScaler, "minmax": MinMaxScaler}


# ---- One training: (configuration, seed) -> loss ---------------------------------------------------------------------
def svm_digits(config, seed):
    """Error rate of a support vector machine, 600 digits to train, 600 to validate."""
    x, x_val, y, y_val = split(datasets.load_digits, 600, seed)
    model = make_pipeline(
        SCALERS[config["scaler"]](), SVC(C=config["C"], gamma=config["gamma"], kernel=config["kernel"])
    )
    return 1 - model.fit(x, y).score(x_val, y_val)


def mlp_digits(config, seed):
    """Error rate of a network of one hidden layer after 10 epochs, 600 digits to train, 600 to validate."""
    x, x_val, y, y_val = split(datasets.load_digits, 600, seed)
    names = {"learning_rate": "learning_rate_init", "n_units": "hidden_layer_sizes", "weight_decay": "alpha"}
    arguments = {names.get(name, name): value for name, value in config.items()}
    model = MLPClassifier(max_iter=10, random_state=seed, **arguments)
    try:
        return 1 - model.fit(x / 16, y).score(x_val / 16, y_val)
    except ValueError:  # the weights have overflowed
        return np.nan


def boosting_cancer(config, seed):
    """Log loss of gradient boosting, half of the breast cancer data to train, half to validate."""
    x, x_val, y, y_val = split(datasets.load_breast_cancer, 284, seed)
    model = GradientBoostingClassifier(random_state=seed, **config)
    return log_loss(y_val, model.fit(x, y).predict_proba(x_val))


def forest_wine(config, seed):
    """Log loss of a random forest, half of the wine data to train, half to validate."""
    x, x_val, y, y_val = split(datasets.load_wine, 89, seed)
    model = RandomForestClassifier(random_state=seed, **config)
    return log_loss(y_val, model.fit(x, y).predict_proba(x_val))


def fashion(config, seed, n_train=3000, n_val=4000, n_epochs=3):
    """Error rate of train/mlp_fashion_mnist.py on a subset, after 3 epochs."""
    torch.manual_seed(seed)
    config = {"n_units_2": 64, "dropout_2": 0.0, "weight_decay": 1e-8, **config}
    order = torch.randperm(50000)[:n_train]  # as in the example, the last 10,000 images are left for validation
    images, labels = fashion_data()
    model = build(config)
    arguments = {"lr": config["learning_rate"], "weight_decay": config["weight_decay"], "fused": True}
    optimizer = torch.optim.Adam(model.parameters(), **arguments)
    for _ in range(n_epochs):
        train(model, optimizer, images[order], labels[order], config["batch_size"])
    return 1 - validate(model, images[50000 : 50000 + n_val], labels[50000 : 50000 + n_val])


def split(load, n_train, seed):
    x, y = load(return_X_y=True)
    return train_test_split(x, y, train_size=n_train, test_size=min(n_train, len(y) - n_train), random_state=seed)


def fashion_data(cache=[]):  # noqa: B006 a cache on purpose: read from disk once
    if not cache:
        name = fashion_mnist.prepare("fashion_mnist", "data")
        images, labels, _, _ = fashion_mnist.load(name, "data")
        cache += [torch.from_numpy(images).flatten(1), torch.from_numpy(labels).long()]
    return cache


# ---- Recording -------------------------------------------------------------------------------------------------------
GRIDS = {  # name -> (training, repetitions)
    "svm_digits": (svm_digits, 4),
    "mlp_digits": (mlp_digits, 4),
    "boosting_cancer": (boosting_cancer, 4),
    "forest_wine": (forest_wine, 4),
    "fashion4": (fashion, 4),
}
KERNEL_DATA = {"kernel_diabetes": datasets.load_diabetes, "kernel_cancer": datasets.load_breast_cancer}


def record_grid(name):
    """Table (n_1, ..., n_d, n_repetitions) of losses."""
    objective, n_repetitions = GRIDS[name]
    space = TABLE_SPACES[name]
    configs = [dict(zip(space, values)) for values in itertools.product(*(space[key].values for key in space))]
    started, rows = time.time(), []
    for i, config in enumerate(configs):
        rows.append([objective(config, seed) for seed in range(n_repetitions)])
        if i % 50 == 0:
            print(f"{name} {i}/{len(configs)} {time.time() - started:.0f} s", flush=True)
    table = np.reshape(rows, [space[key].n_values for key in space] + [n_repetitions])
    np.savez_compressed(TABLES / f"{name}.npz", loss=table.astype(np.float16))


def record_fashion7(n_configs=1000, n_repetitions=2, n_networks=4, n_hidden=48):
    """Weights of networks x (7,) -> (mean of the log error rate, log sd), fitted to recorded trainings."""
    rng, started, X, Y = np.random.default_rng(0), time.time(), [], []
    for i in range(n_configs):
        config = sample(FASHION7_SPACE, rng)
        X.append(encode(FASHION7_SPACE, config))
        Y.append([np.log(fashion(config, 10 * i + r)) for r in range(n_repetitions)])
        if i % 50 == 0:
            print(f"fashion7 {i}/{n_configs} {time.time() - started:.0f} s", flush=True)
    np.savez_compressed(pathlib.Path("data") / "fashion7_recorded.npz", X=X, Y=Y)
    fit_fashion7(np.array(X), np.array(Y), n_networks, n_hidden)


def fit_fashion7(X, Y, n_networks=4, n_hidden=48, n_steps=4000):
    """Fits the ensemble by the Gaussian likelihood of both repetitions; prints R^2 on held-out configurations."""
    X, Y = (torch.from_numpy(a).float() for a in (X, Y))
    test = torch.arange(len(X)) % 10 == 0
    networks, parameters = [], {}
    for k in range(n_networks):
        torch.manual_seed(k)
        layers = [
            torch.nn.Linear(X.shape[1], n_hidden),
            torch.nn.Linear(n_hidden, n_hidden),
            torch.nn.Linear(n_hidden, 2),
        ]
        network = torch.nn.Sequential(layers[0], torch.nn.Tanh(), layers[1], torch.nn.Tanh(), layers[2])
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
        for _ in range(n_steps):
            mean, log_sd = network(X[~test] * 4 - 2).T
            log_sd = log_sd.clamp(-5, 1)
            loss = (((Y[~test] - mean[:, None]) / log_sd.exp()[:, None]) ** 2 / 2 + log_sd[:, None]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        networks.append(network)
        for i, layer in enumerate(layers):
            parameters[f"W{k}{i}"] = layer.weight.detach().numpy().astype(np.float16)
            parameters[f"b{k}{i}"] = layer.bias.detach().numpy().astype(np.float16)
    with torch.no_grad():
        mean = torch.stack([network(X * 4 - 2)[:, 0] for network in networks]).mean(0)
    residual = Y.mean(1) - mean
    for name, rows in (("fitted", ~test), ("held-out", test)):
        r2 = 1 - residual[rows].square().mean() / Y[rows].mean(1).var()
        noise = Y[rows].std(1).square().mean().sqrt()
        print(f"fashion7 {name}: R^2 {r2:.3f}, rms {residual[rows].std():.3f}, repetitions' sd {noise:.3f} (log error)")
    np.savez_compressed(TABLES / "fashion7.npz", **parameters)


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
    TABLES.mkdir(exist_ok=True)
    for name in sys.argv[1:] or [*KERNEL_DATA, *GRIDS, "fashion7"]:
        record = record_kernel_data if name in KERNEL_DATA else record_grid
        record_fashion7() if name == "fashion7" else record(name)


if __name__ == "__main__":
    command.run("record_tables")
