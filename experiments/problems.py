"""Problems to compare searchers on: what a configuration costs, with and without noise.

Fresh ones by number are in families.py; smooth:0-4 are five of a family. The named ones are of
three groups: analytic functions; "hpo", formulas with the features of real tuning (cliffs,
plateaus, ridges, noise that grows with the loss, failures, conditions, parameters that never
matter); and "real", trainings that were recorded or take milliseconds.

These are for reports: searchers are tuned on families. An optimum is exact where a formula or a
whole grid gives it. Those of fashion7 and of kernel_cancer are the lowest losses that a long search
found (`--search` of commit 61ef908).
"""

import argparse
import functools
import json
import math
import pathlib
import re

import numpy as np

from experiments.families import FAMILIES, Problem, add_noise, generated
from hpo import choice, logordinal, lograndint, loguniform, randint, reverseloguniform, uniform
from hpo.space import encode, space_from_json

TABLES = pathlib.Path(__file__).parent / "tables"
PROBLEMS = {}


def problem(group, optimum, noise=0.0, space=None, observe=None):
    """Decorator that makes a loss the problem of its name.

    noise: the standard deviation, or a function of the loss that returns it.
    space: by default the domains that annotate the parameters of the loss.
    """
    observe = observe or add_noise(noise if callable(noise) else lambda loss: noise)

    def register(loss):
        fields = group, space or loss.__annotations__, optimum, loss, observe
        PROBLEMS[loss.__name__] = Problem(*fields)
        return loss

    return register


# ---- Analytic: no optimum in the middle of the space ----
def box(n, low, high):
    return {f"x{i}": uniform(low, high) for i in range(1, n + 1)}


def vector(config):
    return np.array(list(config.values()))


@problem("analytic", -3.86277978733266, space=box(3, 0, 1))
def hartmann3(**config):
    A = np.array([[3, 10, 30], [0.1, 10, 35]] * 2)
    P = [[3689, 1170, 2673], [4699, 4387, 7470], [1091, 8732, 5547], [381, 5743, 8828]]
    alpha = np.array([1.0, 1.2, 3.0, 3.2])
    return -alpha @ np.exp(-np.sum(A * (vector(config) - np.array(P) / 10000) ** 2, axis=1))


@problem("analytic", 0.0, 1.0, box(4, -10, 10))
def levy4(**config):
    """Separable but for neighbouring pairs."""
    w = 1 + (vector(config) - [-5.0, 2.0, 4.0, -3.0]) / 4
    last = (w[-1] - 1) ** 2 * (1 + math.sin(2 * math.pi * w[-1]) ** 2)
    pairs = np.sum((w[:-1] - 1) ** 2 * (1 + 10 * np.sin(math.pi * w[:-1] + 1) ** 2))
    return math.sin(math.pi * w[0]) ** 2 + last + pairs


@problem("analytic", 0.0, 0.2, box(6, -3, 1.5))
def rosenbrock6(**config):
    """log(1 + f / 10): the valley matters, not the walls."""
    x = vector(config)
    return math.log1p(np.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2) / 10)


@problem("analytic", 0.0, space=box(8, -4, 5))
def powell8(**config):
    """log(1 + f / 100): the plain function would leave every searcher at a regret near 0."""
    x = vector(config) - [1.0, -2.0, 2.5, -0.5, -1.5, 2.0, 0.5, -2.5]
    a, b, c, d = x.reshape(2, 4).T
    f = (a + 10 * b) ** 2 + 5 * (c - d) ** 2 + (b - 2 * c) ** 4 + 10 * (a - d) ** 4
    return math.log1p(np.sum(f) / 100)


# ---- HPO-shaped ----
def spoil(floor, chance, *penalties):
    """Loss from `floor` to `chance`: each penalty in [0, 1] takes its share of what is left."""
    kept = math.prod(1 - min(max(p, 0.0), 1.0) for p in penalties)
    return floor + (chance - floor) * (1 - kept)


def saturating(t, width):
    """0 at t <= 0, 1 far above."""
    return 1 - math.exp(-((max(t, 0.0) / width) ** 2))


def bowl(t, width):
    """0 at t = 0, 1 far away on both sides."""
    return saturating(abs(t), width)


def warmup_observe(config, loss, rng):
    if loss > 8:  # diverged
        return loss * 10 ** rng.uniform(0, 5)
    return loss + 0.02 * (loss - 2.9) * rng.standard_normal()


SCHEDULES = {"constant": (-0.3, 0.04), "linear": (0.0, 0.01), "cosine": (0.1, 0.0)}


@problem("hpo", 3.0, observe=warmup_observe)
def warmup5(
    learning_rate: loguniform(1e-5, 0.1), warmup_steps: lograndint(1, 10000),
    width: logordinal([128, 256, 512, 1024]), depth: randint(2, 16),
    schedule: choice(list(SCHEDULES))
):  # fmt: skip
    """A language model. The cliff moves with size and warm-up; beyond it losses are random."""
    shift, handicap = SCHEDULES[schedule]
    warm = math.log10(warmup_steps + 10)
    excess = math.log10(learning_rate) + 3.1 + 0.3 * math.log2(width / 512)
    excess += 0.03 * (depth - 8) - shift
    if excess > 0.25 + 0.4 * (warm - 1):
        return 9.0
    step = saturating(-excess, 2.2), 0.1 * saturating(excess, 1)
    size = 0.2 * bowl(math.log2(depth * width**2 / 2**21) / 3, 2)
    return spoil(3.0, 8.0, *step, size, handicap, 0.1 * saturating(warm - 2.8, 1.0))


@problem("hpo", 0.3, lambda loss: 0.002 + 0.03 * (loss - 0.3))
def boosting8(
    learning_rate: loguniform(1e-3, 1), n_trees: lograndint(10, 2000),
    max_depth: randint(1, 12), subsample: uniform(0.2, 1), columns: uniform(0.1, 1),
    min_child: logordinal([1, 2, 5, 10, 20, 50, 100]), l2: loguniform(1e-8, 100),
    l1: loguniform(1e-8, 100)
):  # fmt: skip
    """A curved ridge (learning rate, trees), overfitting, and parameters that hardly matter."""
    effort = math.log10(learning_rate * n_trees) - 1.1 + 0.08 * (max_depth - 5)
    coarse = 0.15 * saturating(math.log10(learning_rate) + 1.3, 0.8)
    steps = saturating(-effort, 0.9), 0.5 * saturating(effort, 1.3), coarse
    complexity = 0.4 * bowl(max_depth - 5 - 1.2 * math.log10(min_child / 5), 5)
    drawn = 0.1 * bowl(subsample - 0.75, 0.4), 0.15 * bowl(columns - 0.45, 0.4)
    weights = 0.05 * bowl(math.log10(l2), 3), 0.1 * saturating(math.log10(l1), 1)
    return spoil(0.3, 0.7, *steps, complexity, *drawn, *weights)


SCALERS = {"none": 0.15, "standard": 0.0, "robust": 0.02}


@problem("hpo", 0.05, lambda loss: 0.004 + 0.03 * (loss - 0.05))
def kernels7(
    kernel: choice(["linear", "rbf", "poly"]), scaler: choice(list(SCALERS)),
    C: loguniform(1e-4, 1e4), gamma: loguniform(1e-5, 1e2), degree: randint(2, 6),
    coef0: uniform(-1, 1), shrinking: choice([True, False])
):  # fmt: skip
    """gamma counts for two kernels, degree and coef0 for one, shrinking never; large C fails."""
    C, gamma = math.log10(C), math.log10(gamma)
    if (kernel == "linear" and C > 3) or (kernel == "poly" and C + degree * (gamma + 1) > 4):
        return math.nan
    if kernel == "linear":
        penalties = 0.12, saturating(-C - 1.5, 2.5), 0.2 * saturating(C, 2.5)
    elif kernel == "rbf":
        ridge = C + 0.8 * (gamma + 2) - 1  # a larger C makes up for a smaller gamma
        penalties = bowl(ridge, 4.5 if ridge > 0 else 2.5), bowl(gamma + 2, 2.2)
    else:
        shape = 0.02 * (degree - 3) ** 2, 0.1 * saturating(0.3 - coef0, 0.6)
        penalties = 0.03, *shape, bowl(C + gamma, 3)
    return spoil(0.05, 0.5, SCALERS[scaler], *penalties)


@problem("hpo", 0.1, lambda loss: 0.02 + 0.1 * loss)
def agent6(
    learning_rate: loguniform(1e-6, 0.1), discount: reverseloguniform(0.8, 0.9999),
    entropy: loguniform(1e-6, 0.3), clip: uniform(0.02, 0.6), n_steps: lograndint(16, 4096),
    n_epochs: randint(1, 20)
):  # fmt: skip
    """Reinforcement learning: very noisy, and half of the space ends in NaN."""
    horizon = -math.log10(1 - discount)
    work = math.log10(learning_rate * n_epochs * clip / 0.2)
    if work + 0.5 * horizon > -1.3 + 0.4 * math.log10(n_steps / 256):
        return math.nan
    step = saturating(-work - 2.7, 1.6), 0.3 * saturating(work + 2.7, 0.6)
    entropy = math.log10(entropy)
    explore = 0.5 * saturating(entropy + 2, 0.8), 0.1 * saturating(-2.5 - entropy, 2)
    size = 0.3 * bowl(math.log2(n_steps / 512), 4), 0.1 * bowl(clip - 0.2, 0.3)
    return spoil(0.1, 1.0, *step, 0.7 * bowl(horizon - 1.9, 0.9), *explore, *size)


# ---- Real: recorded by experiments/record_tables.py of commit 2ac5384, with scikit-learn ----
SPACES = json.loads((TABLES / "spaces.json").read_text())
SPACES = {name: space_from_json(space) for name, space in SPACES.items()}


@functools.cache
def load_table(name):
    """Arrays by name of a recorded file, as float64."""
    with np.load(TABLES / f"{name}.npz") as arrays:
        return {key: arrays[key].astype(float) for key in arrays}


def add_grid(name):
    """The loss is the mean of the repetitions, NaN if any diverged; a trial reports one of them."""
    losses, space = load_table(name)["loss"], SPACES[name]  # losses (*grid, n_repetitions)

    def repetitions(config):
        return losses[tuple(list(d.values).index(config[key]) for key, d in space.items())]

    loss = lambda **config: repetitions(config).mean()
    observe = lambda config, loss, rng: rng.choice(repetitions(config))
    optimum = float(np.nanmin(losses.mean(axis=-1)))
    PROBLEMS[name] = Problem("real", space, optimum, loss, observe)


add_grid("mlp_digits")
add_grid("forest_wine")


def fashion7_moments(config):
    """(mean, deviation) of the log error rate of the running example on a subset of the data, from
    networks fitted to recorded trainings."""
    arrays, outputs = load_table("fashion7"), []
    for k in range(len(arrays) // 6):
        W, b = ([arrays[f"{letter}{k}{i}"] for i in range(3)] for letter in "Wb")
        hidden = np.tanh(W[0] @ (encode(SPACES["fashion7"], config) * 4 - 2) + b[0])
        outputs.append(W[2] @ np.tanh(W[1] @ hidden + b[1]) + b[2])
    mean, log_deviation = np.mean(outputs, axis=0)
    return mean, math.exp(min(max(log_deviation, -5), 0))


def fashion7_observe(config, loss, rng):
    mean, deviation = fashion7_moments(config)
    return min(math.exp(mean + deviation * rng.standard_normal()), 0.95)


@problem("real", 0.15504, space=SPACES["fashion7"], observe=fashion7_observe)
def fashion7(**config):
    return math.exp(fashion7_moments(config)[0])


# Kernel ridge regression: leave-one-out errors in 3 ms by Rasmussen & Williams, eq. 5.12
SHAPES = {
    "gauss": lambda r2: np.exp(-r2),
    "laplace": lambda r2: np.exp(-np.sqrt(r2)),
    "rational": lambda r2: 1 / (1 + r2),
}


def kernel_residuals(config):
    """Residuals (n,): each row is predicted from the others."""
    X, y = load_table("kernel_cancer")["X"], load_table("kernel_cancer")["y"]
    r2 = 0  # (n, n), squared distances: each third of the columns has a gamma
    for i, part in enumerate(np.array_split(X, 3, axis=1), 1):
        squares = np.sum(part**2, axis=1)
        distances = squares[:, None] + squares - 2 * part @ part.T
        r2 = r2 + config[f"gamma_{i}"] * np.maximum(distances, 0)
    K = SHAPES[config["kernel"]](r2)
    inverse = np.linalg.inv(K + config["ridge"] * np.eye(len(y)))
    return (inverse @ y) / np.diag(inverse)


def kernel_observe(config, loss, rng):
    """A trial reports the error over 150 random rows."""
    return np.sqrt(np.mean(rng.choice(kernel_residuals(config), 150, replace=False) ** 2))


SPACE = {"kernel": choice(list(SHAPES))} | {f"gamma_{i}": loguniform(1e-6, 10) for i in (1, 2, 3)}
SPACE["ridge"] = loguniform(1e-5, 1e2)


@problem("real", 0.36906, space=SPACE, observe=kernel_observe)
def kernel_cancer(**config):
    """Root mean square error over all rows."""
    return np.sqrt(np.mean(kernel_residuals(config) ** 2))


# ---- Problems by name ----
def find(name):
    """The problem called `name`: smooth:7 is number 7 of its family."""
    family, colon, number = name.partition(":")
    return generated(family, int(number)) if colon else PROBLEMS[name]


def names(text):
    """Argparse type: the list of names in "branin2", "smooth:7" or "smooth:0-9"."""
    family, _, numbers = text.partition(":")
    if text in PROBLEMS:
        return [text]
    if family in FAMILIES and (match := re.fullmatch(r"(\d+)(?:-(\d+))?", numbers)):
        first, last = int(match[1]), int(match[2] or match[1])
        return [f"{family}:{number}" for number in range(first, last + 1)]
    known = f"{', '.join(PROBLEMS)}, or FAMILY:FIRST-LAST, of {', '.join(FAMILIES)}"
    raise argparse.ArgumentTypeError(f"no problem {text}; there are {known}")
