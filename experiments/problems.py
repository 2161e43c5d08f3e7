"""Problems to compare searchers on: what a configuration costs, with and without noise, and the best there is.

    python -m experiments.problems                    prints them
    python -m experiments.problems --search 100000    searches each for a loss below its stated optimum

Three groups: analytic functions, HPO-shaped ones (formulas with the features of real tuning: cliffs, plateaus, ridges,
noise that grows with the loss, failures, parameters that matter under a condition or not at all) and real ones. Two
halves: searchers are tuned on "tune" alone and judged on "report". The halves are alike in dimensions, noise and kinds
of parameters; each problem of one has its counterpart of the same sort in the other.

Every optimum is exact where it can be: analytic functions (closed form), formulas whose terms can all vanish, grids (by
enumeration). Those of mlp7, out_of_memory5, fashion7 and the two kernel problems come from `--search`: thousands of
random configurations, then 20 evolution strategies of 2,000 steps each from the best of them.
"""

import functools
import math
import pathlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from experiments import command
from hpo.space import (
    choice,
    decode,
    domains,
    encode,
    finrange,
    logfinrange,
    logordinal,
    lograndint,
    loguniform,
    n_dims,
    ordinal,
    randint,
    reverseloguniform,
    sample,
    uniform,
)
from run import positive_int

TABLES = pathlib.Path(__file__).parent / "tables"


@dataclass(frozen=True)
class Problem:
    """loss(config): without noise, NaN where the trial fails. observe(config, loss, rng): with noise."""

    name: str
    group: str  # analytic, hpo, real
    half: str  # tune, report
    space: dict = field(repr=False)
    loss: Callable = field(repr=False)
    optimum: float
    observe: Callable = field(repr=False)

    def true_loss(self, config):
        return float(self.loss(config))

    def evaluate(self, config, rng):
        """What a trial reports; NaN when it fails."""
        loss = self.true_loss(config)
        return float(self.observe(config, loss, rng)) if math.isfinite(loss) else math.nan


PROBLEMS = {}


def problem(name, group, half, space, optimum, noise=0.0):
    """Decorator: registers the loss of a problem. noise: standard deviation, or a function (config, loss) of it."""

    def observe(config, loss, rng):
        return loss + (noise(config, loss) if callable(noise) else noise) * rng.standard_normal()

    def register(loss):
        PROBLEMS[name] = Problem(name, group, half, space, loss, optimum, observe)
        return loss

    return register


# ---- Analytic: no optimum in the middle of the space -----------------------------------------------------------------
def box(n, low, high):
    return {f"x{i}": uniform(low, high) for i in range(1, n + 1)}


def vector(config):
    return np.array(list(config.values()))


@problem("branin2", "analytic", "tune", {"x1": uniform(-5, 10), "x2": uniform(0, 15)}, 0.39788735772973816)
def branin(config):
    x1, x2 = vector(config)
    bowl = x2 - 5.1 / (4 * math.pi**2) * x1**2 + 5 / math.pi * x1 - 6
    return bowl**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x1) + 10


ACKLEY_SHIFT = np.array([-4.0, 3.0, 6.0, -7.0, 1.5])


@problem("ackley5", "analytic", "tune", box(5, -10, 10), 0.0, noise=0.5)
def ackley(config):
    x = vector(config) - ACKLEY_SHIFT
    return 20 + math.e - 20 * math.exp(-0.2 * np.sqrt(np.mean(x**2))) - math.exp(np.mean(np.cos(2 * math.pi * x)))


HARTMANN_ALPHA = np.array([1.0, 1.2, 3.0, 3.2])
HARTMANN3 = (
    np.array([[3, 10, 30], [0.1, 10, 35], [3, 10, 30], [0.1, 10, 35]]),
    np.array([[0.3689, 0.117, 0.2673], [0.4699, 0.4387, 0.747], [0.1091, 0.8732, 0.5547], [0.0381, 0.5743, 0.8828]]),
)
HARTMANN6 = (
    np.array(
        [[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14], [3, 3.5, 1.7, 10, 17, 8], [17, 8, 0.05, 10, 0.1, 14]]
    ),
    np.array(
        [
            [0.1312, 0.1696, 0.5569, 0.0124, 0.8283, 0.5886],
            [0.2329, 0.4135, 0.8307, 0.3736, 0.1004, 0.9991],
            [0.2348, 0.1451, 0.3522, 0.2883, 0.3047, 0.6650],
            [0.4047, 0.8828, 0.8732, 0.5743, 0.1091, 0.0381],
        ]
    ),
)


def hartmann(config, A, P):
    return -HARTMANN_ALPHA @ np.exp(-np.sum(A * (vector(config) - P) ** 2, axis=1))


@problem("hartmann6", "analytic", "tune", box(6, 0, 1), -3.322368011415514, noise=0.1)
def hartmann6(config):
    return hartmann(config, *HARTMANN6)


@problem("hartmann3", "analytic", "report", box(3, 0, 1), -3.86277978733266)
def hartmann3(config):
    return hartmann(config, *HARTMANN3)


ROTATION = np.linalg.qr(np.random.default_rng(0).standard_normal((10, 10)))[0]
ELLIPSOID_CENTRE = np.random.default_rng(1).uniform(0.15, 0.85, 10)


@problem("ellipsoid10", "analytic", "tune", box(10, 0, 1), 0.0)
def ellipsoid(config):
    """A quadratic bowl in a rotated frame, axes from 1 to 100."""
    z = ROTATION @ (vector(config) - ELLIPSOID_CENTRE)
    return 100 ** np.linspace(0, 1, 10) @ z**2


LEVY_SHIFT = np.array([-5.0, 2.0, 4.0, -3.0])


@problem("levy4", "analytic", "report", box(4, -10, 10), 0.0, noise=1.0)
def levy(config):
    """Separable but for neighbouring pairs."""
    w = 1 + (vector(config) - LEVY_SHIFT) / 4
    ends = math.sin(math.pi * w[0]) ** 2 + (w[-1] - 1) ** 2 * (1 + math.sin(2 * math.pi * w[-1]) ** 2)
    return ends + np.sum((w[:-1] - 1) ** 2 * (1 + 10 * np.sin(math.pi * w[:-1] + 1) ** 2))


@problem("rosenbrock6", "analytic", "report", box(6, -3, 1.5), 0.0, noise=0.2)
def rosenbrock(config):
    """log(1 + f / 10): the valley matters, not the walls."""
    x = vector(config)
    return math.log1p(np.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2) / 10)


POWELL_SHIFT = np.array([1.0, -2.0, 2.5, -0.5, -1.5, 2.0, 0.5, -2.5])


@problem("powell8", "analytic", "report", box(8, -4, 5), 0.0)
def powell(config):
    """log(1 + f / 100): the plain function would leave every searcher at a regret near 0."""
    a, b, c, d = (vector(config) - POWELL_SHIFT).reshape(2, 4).T
    f = np.sum((a + 10 * b) ** 2 + 5 * (c - d) ** 2 + (b - 2 * c) ** 4 + 10 * (a - d) ** 4)
    return math.log1p(f / 100)


# ---- HPO-shaped ------------------------------------------------------------------------------------------------------
def spoil(floor, chance, *penalties):
    """Loss from `floor` to `chance`, as each penalty in [0, 1] takes its share of what the others have left."""
    return floor + (chance - floor) * (1 - math.prod(1 - min(max(p, 0.0), 1.0) for p in penalties))


def saturating(t, width):
    """0 at t <= 0, 1 far above."""
    return 1 - math.exp(-((max(t, 0.0) / width) ** 2))


def bowl(t, width):
    """0 at t = 0, 1 far away on both sides."""
    return saturating(abs(t), width)


SGD_SPACE = {
    "learning_rate": loguniform(1e-6, 1),
    "momentum": reverseloguniform(0, 0.999),
    "batch_size": lograndint(8, 512),
    "weight_decay": loguniform(1e-7, 0.1),
}


def sgd_excess(config):
    """Decades by which the step is longer than the best one for this batch size."""
    step = config["learning_rate"] / (1 - config["momentum"])
    return math.log10(step / 0.4) - 0.5 * math.log10(config["batch_size"] / 64)


def sgd_noise(config, loss):
    return 0.003 + 0.03 * math.exp(-((sgd_excess(config) - 0.8) ** 2) / 0.1)  # training is erratic near the cliff


@problem("sgd_cliff", "hpo", "tune", SGD_SPACE, 0.08, noise=sgd_noise)
def sgd_cliff(config):
    """A ridge of good steps (learning rate against momentum against batch size) close to where training diverges."""
    excess = sgd_excess(config)
    if excess > 0.9:
        return 0.9
    decay = math.log10(config["weight_decay"]) + excess + 4
    size = math.log2(config["batch_size"] / 16)
    return spoil(0.08, 0.9, saturating(-excess, 2.5), 0.2 * saturating(excess, 0.8), bowl(decay, 6), bowl(size, 20))


FASHION7_SPACE = {
    "n_units_1": randint(4, 1024),
    "n_units_2": randint(4, 1024),
    "batch_size": randint(8, 128),
    "dropout_1": uniform(0, 0.99),
    "dropout_2": uniform(0, 0.99),
    "learning_rate": loguniform(1e-6, 1),
    "weight_decay": loguniform(1e-8, 1),
}


@problem("mlp7", "hpo", "tune", FASHION7_SPACE, 0.15255, noise=lambda config, loss: 0.002 + 0.02 * (loss - 0.12))
def mlp7(config):
    """The response of a multilayer perceptron such as the running example's, imagined."""
    width_1, width_2 = (config[f"n_units_{i}"] * (1 - config[f"dropout_{i}"]) for i in (1, 2))
    n_weights = 784 * config["n_units_1"] + config["n_units_1"] * config["n_units_2"]
    overfit = 0.08 * math.log10(n_weights / 1e5) * (1 - config["dropout_1"]) * (1 - 0.5 * config["dropout_2"])
    excess = math.log10(config["learning_rate"]) + 3.2 + 0.35 * math.log10(width_1 + 1)
    excess += -0.3 * math.log10(config["batch_size"] / 32) - 0.6
    decay = math.log10(config["weight_decay"]) + 3.5
    return spoil(
        0.1,
        0.9,
        0.5 / math.sqrt(width_1 + 0.5),
        0.4 / math.sqrt(width_2 + 0.5),
        overfit,
        saturating(-excess, 1.8),
        saturating(excess, 1.1),
        saturating(decay, 1.2),
        0.02 * bowl(decay + 1.5, 2),
    )


OPTIMIZER_SPACE = {
    "optimizer": choice(["sgd", "adam", "rmsprop", "adagrad"]),
    "learning_rate": loguniform(1e-6, 10),
    "momentum": uniform(0, 0.99),
    "beta_2": reverseloguniform(0.9, 0.9999),
    "activation": choice(["relu", "tanh", "gelu"]),
    "n_layers": randint(1, 5),
    "n_units": lograndint(16, 512),
    "log_every": randint(1, 100),
}
OPTIMIZERS = {"sgd": (-0.8, 0.03), "adam": (-3.0, 0.0), "rmsprop": (-3.4, 0.02), "adagrad": (-1.8, 0.05)}


@problem("optimizers8", "hpo", "tune", OPTIMIZER_SPACE, 0.2, noise=0.01)
def optimizers8(config):
    """Categories that move the best learning rate; momentum counts for two of them, beta_2 for one, log_every never."""
    best, handicap = OPTIMIZERS[config["optimizer"]]
    excess = math.log10(config["learning_rate"]) - best
    penalties = [handicap, {"relu": 0.01, "tanh": 0.06, "gelu": 0.0}[config["activation"]]]
    if config["optimizer"] in ("sgd", "rmsprop"):
        excess -= math.log10(1 - config["momentum"]) + 1  # momentum 0.9 is the norm
        penalties.append(0.1 * bowl(config["momentum"] - 0.9, 0.4))
    if config["optimizer"] == "adam":
        penalties.append(0.08 * bowl(math.log10(1 - config["beta_2"]) + 2.5, 0.8))
    excess += 0.15 * (config["n_layers"] - 2)  # deeper networks want shorter steps
    penalties += [saturating(-excess, 1.8), saturating(excess, 1.0), 0.03 * (config["n_layers"] - 3) ** 2]
    penalties.append(0.2 * bowl(math.log2(config["n_units"] / 128), 3))
    return spoil(0.2, 1.0, *penalties)


MEMORY_SPACE = {
    "depth": randint(1, 24),
    "width": logordinal([64, 128, 256, 512, 1024]),
    "batch_size": lograndint(8, 1024),
    "learning_rate": loguniform(1e-5, 0.1),
    "label_smoothing": uniform(0, 0.5),
}


@problem("out_of_memory5", "hpo", "tune", MEMORY_SPACE, 0.17658, noise=lambda config, loss: 0.05 * (loss - 0.1))
def out_of_memory5(config):
    """Larger is better until memory is out; long steps in deep networks give NaN. Half of the space fails."""
    depth, width, batch_size = config["depth"], config["width"], config["batch_size"]
    if depth * width * (batch_size + 0.25 * width) > 1e6:
        return math.nan
    excess = math.log10(config["learning_rate"]) + 1.6 + 0.2 * math.log2(depth) - 0.3 * math.log10(batch_size / 64)
    if excess > 0.5:
        return math.nan
    capacity = 0.35 * math.exp(-math.log2(depth * width / 64) / 4)
    smooth = 0.05 * bowl(config["label_smoothing"] - 0.12, 0.15)
    return spoil(0.1, 0.9, capacity, bowl(excess, 1.8), smooth, 0.3 / math.sqrt(batch_size))


WARMUP_SPACE = {
    "learning_rate": loguniform(1e-5, 0.1),
    "warmup_steps": lograndint(1, 10000),
    "width": logordinal([128, 256, 512, 1024]),
    "depth": randint(2, 16),
    "schedule": choice(["constant", "linear", "cosine"]),
}


def warmup_observe(config, loss, rng):
    diverged = loss > 8
    return loss * 10 ** rng.uniform(0, 5) if diverged else loss + 0.02 * (loss - 2.9) * rng.standard_normal()


def warmup5(config):
    """A language model's loss: the cliff moves with width, depth and warm-up; beyond it the loss is huge and random."""
    warm = math.log10(config["warmup_steps"] + 10)
    excess = math.log10(config["learning_rate"]) + 3.1 + 0.3 * math.log2(config["width"] / 512)
    excess += 0.03 * (config["depth"] - 8) - {"constant": -0.3, "linear": 0.0, "cosine": 0.1}[config["schedule"]]
    if excess > 0.25 + 0.4 * (warm - 1):
        return 9.0
    size = math.log2(config["depth"] * config["width"] ** 2 / 2**21) / 3
    schedule = {"constant": 0.04, "linear": 0.01, "cosine": 0.0}[config["schedule"]]
    slow = 0.1 * saturating(warm - 2.8, 1.0)
    return spoil(3.0, 8.0, saturating(-excess, 2.2), 0.1 * saturating(excess, 1), 0.2 * bowl(size, 2), schedule, slow)


PROBLEMS["warmup5"] = Problem("warmup5", "hpo", "report", WARMUP_SPACE, warmup5, 3.0, warmup_observe)

BOOSTING_SPACE = {
    "learning_rate": loguniform(1e-3, 1),
    "n_trees": lograndint(10, 2000),
    "max_depth": randint(1, 12),
    "subsample": uniform(0.2, 1),
    "columns": uniform(0.1, 1),
    "min_child": logordinal([1, 2, 5, 10, 20, 50, 100]),
    "l2": loguniform(1e-8, 100),
    "l1": loguniform(1e-8, 100),
}


@problem("boosting8", "hpo", "report", BOOSTING_SPACE, 0.3, noise=lambda config, loss: 0.002 + 0.03 * (loss - 0.3))
def boosting8(config):
    """A curved ridge (learning rate x trees), overfitting with depth, and parameters that hardly matter or never."""
    effort = math.log10(config["learning_rate"] * config["n_trees"]) - 1.1 + 0.08 * (config["max_depth"] - 5)
    complexity = config["max_depth"] - 5 - 1.2 * math.log10(config["min_child"] / 5)
    return spoil(
        0.3,
        0.7,
        saturating(-effort, 0.9),
        0.5 * saturating(effort, 1.3),
        0.15 * saturating(math.log10(config["learning_rate"]) + 1.3, 0.8),
        0.4 * bowl(complexity, 5),
        0.1 * bowl(config["subsample"] - 0.75, 0.4),
        0.15 * bowl(config["columns"] - 0.45, 0.4),
        0.05 * bowl(math.log10(config["l2"]), 3),
        0.1 * saturating(math.log10(config["l1"]), 1),
    )


KERNEL_SPACE = {
    "kernel": choice(["linear", "rbf", "poly"]),
    "scaler": choice(["none", "standard", "robust"]),
    "C": loguniform(1e-4, 1e4),
    "gamma": loguniform(1e-5, 1e2),
    "degree": randint(2, 6),
    "coef0": uniform(-1, 1),
    "shrinking": choice([True, False]),
}


@problem("kernels7", "hpo", "report", KERNEL_SPACE, 0.05, noise=lambda config, loss: 0.004 + 0.03 * (loss - 0.05))
def kernels7(config):
    """Conditions: gamma counts for two kernels, degree and coef0 for one, shrinking never; large C does not end."""
    C, gamma = math.log10(config["C"]), math.log10(config["gamma"])
    scaler = {"none": 0.15, "standard": 0.0, "robust": 0.02}[config["scaler"]]
    if config["kernel"] == "linear":
        return (
            math.nan if C > 3 else spoil(0.05, 0.5, scaler, 0.12, saturating(-C - 1.5, 2.5), 0.2 * saturating(C, 2.5))
        )
    if config["kernel"] == "rbf":
        ridge = C + 0.8 * (gamma + 2) - 1  # a larger C makes up for a smaller gamma
        return spoil(0.05, 0.5, scaler, bowl(ridge, 4.5 if ridge > 0 else 2.5), bowl(gamma + 2, 2.2))
    if C + config["degree"] * (gamma + 1) > 4:
        return math.nan
    degree = 0.02 * (config["degree"] - 3) ** 2
    return spoil(0.05, 0.5, scaler, 0.03, degree, bowl(C + gamma, 3), 0.1 * saturating(0.3 - config["coef0"], 0.6))


AGENT_SPACE = {
    "learning_rate": loguniform(1e-6, 0.1),
    "discount": reverseloguniform(0.8, 0.9999),
    "entropy": loguniform(1e-6, 0.3),
    "clip": uniform(0.02, 0.6),
    "n_steps": lograndint(16, 4096),
    "n_epochs": randint(1, 20),
}


@problem("agent6", "hpo", "report", AGENT_SPACE, 0.1, noise=lambda config, loss: 0.02 + 0.1 * loss)
def agent6(config):
    """Reinforcement learning: very noisy, and half of the space ends in NaN."""
    horizon = -math.log10(1 - config["discount"])
    work = math.log10(config["learning_rate"] * config["n_epochs"] * config["clip"] / 0.2)
    if work + 0.5 * horizon > -1.3 + 0.4 * math.log10(config["n_steps"] / 256):
        return math.nan
    excess = work + 2.7
    return spoil(
        0.1,
        1.0,
        saturating(-excess, 1.6),
        0.3 * saturating(excess, 0.6),
        0.7 * bowl(horizon - 1.9, 0.9),
        0.5 * saturating(math.log10(config["entropy"]) + 2, 0.8),
        0.1 * saturating(-2.5 - math.log10(config["entropy"]), 2),
        0.3 * bowl(math.log2(config["n_steps"] / 512), 4),
        0.1 * bowl(config["clip"] - 0.2, 0.3),
    )


# ---- Real: recorded by experiments/record_tables.py ------------------------------------------------------------------
TABLE_SPACES = {
    "svm_digits": {
        "C": logfinrange(1e-3, 1e4, 15),
        "gamma": logfinrange(1e-6, 10, 15),
        "kernel": choice(["rbf", "poly", "sigmoid"]),
        "scaler": choice(["none", "standard", "minmax"]),
    },
    "fashion4": {
        "learning_rate": logfinrange(1e-5, 1, 11),
        "batch_size": ordinal([16, 32, 64, 128]),
        "n_units_1": logordinal([16, 64, 256]),
        "dropout_1": finrange(0, 0.8, 5),
    },
    "boosting_cancer": {
        "learning_rate": logfinrange(0.003, 1, 8),
        "n_estimators": logordinal([5, 10, 20, 40, 80]),
        "max_depth": randint(1, 6),
        "subsample": finrange(0.4, 1, 3),
        "max_features": logfinrange(0.1, 1, 3),
    },
    "mlp_digits": {
        "learning_rate": logfinrange(1e-5, 1, 11),
        "n_units": logordinal([8, 24, 72, 216]),
        "batch_size": logordinal([8, 24, 72]),
        "weight_decay": logfinrange(1e-6, 1, 4),
        "activation": choice(["relu", "tanh", "logistic"]),
    },
    "forest_wine": {
        "n_estimators": logordinal([2, 4, 8, 16, 32, 64]),
        "max_depth": randint(1, 6),
        "min_samples_leaf": logordinal([1, 2, 4, 8, 16]),
        "max_features": finrange(0.1, 1, 4),
        "bootstrap": choice([True, False]),
    },
}


@functools.cache
def load_table(name):
    """Arrays by name of a recorded file, as float64."""
    with np.load(TABLES / f"{name}.npz") as arrays:
        return {key: arrays[key].astype(float) for key in arrays}


def repetitions(name, config):
    """Recorded losses (n_repetitions,) of a configuration of a grid."""
    indices = tuple(list(domain.values).index(config[key]) for key, domain in TABLE_SPACES[name].items())
    return load_table(name)["loss"][indices]


def grid_problem(name, half):
    """The loss is the mean over the repetitions, NaN if any diverged; a trial reports one of them."""

    def observe(config, loss, rng):
        return rng.choice(repetitions(name, config))

    def loss(config):
        return repetitions(name, config).mean()

    optimum = float(np.nanmin(load_table(name)["loss"].mean(axis=-1)))
    PROBLEMS[name] = Problem(name, "real", half, TABLE_SPACES[name], loss, optimum, observe)


GRID_HALVES = {"svm_digits": "tune", "fashion4": "tune", "boosting_cancer": "tune"}
GRID_HALVES |= {"mlp_digits": "report", "forest_wine": "report"}
for grid, half in GRID_HALVES.items():
    if (TABLES / f"{grid}.npz").exists():  # else it has yet to be recorded
        grid_problem(grid, half)


def fashion7(config):
    """(mean, sd) of the log error rate of train/mlp_fashion_mnist.py on a subset, from networks fitted to trainings."""
    arrays = load_table("fashion7")
    x = encode(FASHION7_SPACE, config) * 4 - 2
    outputs = []
    for k in range(len(arrays) // 6):
        W, b = ([arrays[f"{letter}{k}{i}"] for i in range(3)] for letter in "Wb")
        outputs.append(W[2] @ np.tanh(W[1] @ np.tanh(W[0] @ x + b[0]) + b[1]) + b[2])
    mean, log_sd = np.mean(outputs, axis=0)
    return mean, math.exp(min(max(log_sd, -5), 0))


def fashion7_observe(config, loss, rng):
    mean, sd = fashion7(config)
    return min(math.exp(mean + sd * rng.standard_normal()), 0.95)


def fashion7_loss(config):
    return math.exp(fashion7(config)[0])


if (TABLES / "fashion7.npz").exists():
    PROBLEMS["fashion7"] = Problem(
        "fashion7", "real", "report", FASHION7_SPACE, fashion7_loss, 0.15504, fashion7_observe
    )


# Kernel regression computed on the spot (3 ms): leave-one-out errors in closed form, Rasmussen & Williams (5.12)
def leave_one_out(K, y, ridge):
    """Residuals (n,) of kernel ridge regression, each row predicted from the others."""
    inverse = np.linalg.inv(K + ridge * np.eye(len(y)))
    return (inverse @ y) / np.diag(inverse)


def squared_distances(X):
    squares = np.sum(X**2, axis=1)
    return np.maximum(squares[:, None] + squares - 2 * X @ X.T, 0)


@functools.cache
def kernel_data(name, n_groups):
    """(list of squared distances (n, n), one for each group of columns; X; y)."""
    arrays = load_table(name)
    return [squared_distances(X) for X in np.array_split(arrays["X"], n_groups, axis=1)], arrays["X"], arrays["y"]


SHAPES = {
    "gauss": lambda r2: np.exp(-r2),
    "laplace": lambda r2: np.exp(-np.sqrt(r2)),
    "rational": lambda r2: 1 / (1 + r2),
}


def kernel_residuals(name, n_groups, config):
    squares, X, y = kernel_data(name, n_groups)
    r2 = sum(config[f"gamma_{i + 1}"] * square for i, square in enumerate(squares))
    K = SHAPES[config["kernel"]](r2) + config.get("linear", 0.0) * X @ X.T
    return leave_one_out(K, y, config["ridge"])


def kernel_problem(name, half, n_groups, space, optimum, n_rows):
    """Root mean square error over all rows; a trial reports it over n_rows random ones."""

    def observe(config, loss, rng):
        residuals = kernel_residuals(name, n_groups, config)
        return np.sqrt(np.mean(rng.choice(residuals, n_rows, replace=False) ** 2))

    def loss(config):
        return np.sqrt(np.mean(kernel_residuals(name, n_groups, config) ** 2))

    PROBLEMS[name] = Problem(name, "real", half, space, loss, optimum, observe)


DIABETES_SPACE = {
    "kernel": choice(["gauss", "laplace", "rational"]),
    "gamma_1": loguniform(1e-6, 10),
    "gamma_2": loguniform(1e-6, 10),
    "linear": loguniform(1e-6, 10),
    "ridge": loguniform(1e-6, 1e2),
}
CANCER_SPACE = {
    "kernel": choice(["gauss", "laplace", "rational"]),
    **{f"gamma_{i}": loguniform(1e-6, 10) for i in (1, 2, 3)},
    "ridge": loguniform(1e-5, 1e2),
}
kernel_problem("kernel_diabetes", "tune", 2, DIABETES_SPACE, 0.67942, n_rows=150)
kernel_problem("kernel_cancer", "report", 3, CANCER_SPACE, 0.36906, n_rows=150)


# ---- The optima, checked ---------------------------------------------------------------------------------------------
def search_optimum(problem, n_random, n_starts=20, n_steps=2000, seed=0):
    """(lowest true loss found, its configuration): random configurations, then evolution strategies from the best."""
    rng = np.random.default_rng(seed)

    def loss(x):
        value = problem.true_loss(decode(problem.space, x))
        return value if math.isfinite(value) else math.inf

    points = rng.random((n_random, n_dims(problem.space)))
    losses = np.array([loss(x) for x in points])
    best = []
    for i in np.argsort(losses)[:n_starts]:
        x, value, step = points[i], losses[i], 0.1
        for _ in range(n_steps):  # (1+1)-ES with the one-fifth rule, about half of the coordinates at a time
            move = step * rng.standard_normal(len(x)) * (rng.random(len(x)) < 0.5)
            trial = np.clip(x + move, 0, 1)
            if (new := loss(trial)) < value:
                x, value, step = trial, new, min(step * 1.5, 0.3)
            else:
                step = max(step * 0.92, 1e-4)
        best.append((value, decode(problem.space, x)))
    return min(best, key=lambda pair: pair[0])


def describe(problem, n=300):
    """A line: dimensions, kinds of parameters, the optimum, the median of random configurations, share that fails."""
    rng = np.random.default_rng(0)
    configs = [sample(problem.space, rng) for _ in range(n)]
    losses = np.array([problem.true_loss(config) for config in configs])
    noise = np.nanstd([problem.evaluate(c, rng) - loss for c, loss in zip(configs, losses)])
    kinds = " ".join(sorted({domain.kind for domain in domains(problem.space).values()}))
    return (
        f"{problem.name:<16}{problem.group:<9}{problem.half:<7}{len(domains(problem.space)):>3}  "
        f"{problem.optimum:<9.4g}{np.nanmedian(losses):<9.4g}{noise:<9.2g}{np.isnan(losses).mean():>5.0%}  {kinds}"
    )


def main():
    parser = command.parser("problems", __doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    parser.add_argument(
        "--search", type=positive_int, metavar="N", help="look for losses below the optimum, N random starts"
    )
    args = parser.parse_args()
    if unknown := set(args.names) - set(PROBLEMS):
        parser.error(f"no problem {', '.join(unknown)}; there are {', '.join(PROBLEMS)}")
    print(f"{'problem':<16}{'group':<9}{'half':<7}dim  optimum  median   noise    fail  kinds of parameters")
    for name in args.names or PROBLEMS:
        print(describe(PROBLEMS[name]), flush=True)
        if args.search:
            print("    found", *search_optimum(PROBLEMS[name], args.search), flush=True)


if __name__ == "__main__":
    command.run("problems")
