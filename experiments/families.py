"""Families of problems: fresh ones by number, so that no decision depends on problems seen before.

`generated(family, number)` draws the space, the optimum, the widths and the noise of an instance.
The loss is a function of the point x in [0, 1]^n of the numeric parameters. star is the point of
the best configuration, and d = x - star. Every penalty is 0 at star, so optima are exact. Do not
change what is drawn: all numbers would become other problems, and those in the log mean nothing.
"""

import functools
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

import hpo
from hpo.space import decode, domains, n_dims

DOMAINS = [
    hpo.loguniform(1e-6, 1), hpo.loguniform(1e-4, 1e3), hpo.uniform(0, 1), hpo.uniform(-5, 10),
    hpo.randint(1, 8), hpo.randint(4, 1024), hpo.lograndint(8, 512),
    hpo.reverseloguniform(0, 0.999), hpo.ordinal([0, 1, 3, 10]),
    hpo.logordinal([16, 32, 64, 128, 256]),
]  # fmt: skip


@dataclass(frozen=True)
class Problem:
    group: str  # analytic, hpo, real, or the family
    space: dict
    optimum: float
    loss: Callable  # loss(**config): without noise, NaN where the trial fails
    observe: Callable  # observe(config, loss, rng): with noise
    curve: Callable | None = None  # curve(config, rng) yields (seconds, loss) of each epoch

    def true_loss(self, config):
        return float(self.loss(**config))

    def evaluate(self, config, rng):
        """What a trial reports; NaN when it fails."""
        loss = self.true_loss(config)
        return float(self.observe(config, loss, rng)) if math.isfinite(loss) else math.nan


# ---- Parts of a landscape ----
def numeric(space, config):
    """The point x (n,) of the parameters that are no choice."""
    parts = [d.encode(config[k]) for k, d in domains(space).items() if d.kind != "choice"]
    return np.concatenate(parts)


def draw_space(rng, n):
    return {f"x{i}": DOMAINS[rng.integers(len(DOMAINS))] for i in range(1, n + 1)}


def draw_star(rng, space):
    """The best point: neither near the centre of the space nor in a corner."""
    while True:
        config = decode(space, rng.uniform(0.03, 0.97, n_dims(space)))
        off_centre = np.abs(numeric(space, config) - 0.5)
        if off_centre.max() > 0.2 and off_centre.min() < 0.4:
            return numeric(space, config)


def draw_bowls(rng, n, narrowness=1.0, n_irrelevant=0):
    """Function d (n,) -> the share in [0, 1] that is kept of what can be won, 1 at d = 0.

    Each parameter has a bowl with two widths, one of which may be infinite (a plateau). Some
    parameters shift the bottom of others, which makes ridges; the irrelevant ones do no more.
    """
    widths = 10 ** rng.uniform(-0.8, 0.2, (2, n)) / narrowness
    widths[rng.integers(2, size=n), np.arange(n)] *= np.where(rng.random(n) < 0.2, 1e9, 1)
    weights = 10 ** rng.uniform(-1.5, 0, n)
    weights *= rng.uniform(0.6, 1) / weights.max()
    weights[np.argsort(weights)[:n_irrelevant]] = 0
    mixing = np.eye(n) + np.triu(rng.uniform(-1, 1, (n, n)) * (rng.random((n, n)) < 0.3), 1)

    def kept(d):
        t = mixing @ d
        return np.prod(1 - weights * (1 - np.exp(-((t / np.where(t < 0, *widths)) ** 2))))

    return kept


def draw_scale(rng):
    """(loss of the best configuration, how much is left to lose)."""
    return 10 ** rng.uniform(-1.5, 0.5), 10 ** rng.uniform(-1, 1.5)


def draw_landscape(rng, n):
    """(space, star, kept(config), floor, height): the loss is floor + height (1 - kept)."""
    space = draw_space(rng, n)
    star, bowls, (floor, height) = draw_star(rng, space), draw_bowls(rng, n), draw_scale(rng)
    return space, star, lambda config: bowls(numeric(space, config) - star), floor, height


def add_noise(deviation):
    """observe: as Problem has it. deviation: a function of the loss."""
    return lambda config, loss, rng: loss + deviation(loss) * rng.standard_normal()


# ---- The families: each returns (space, optimum, loss(**config), observe) ----
def smooth(rng, n=None):
    """As tuning is: bowls, ridges, plateaus, irrelevant parameters, noise that grows with the loss.
    A third of them has a choice that moves the optimum of a parameter."""
    n = n or rng.integers(2, 9)
    space = draw_space(rng, n)
    star = draw_star(rng, space)
    bowls = draw_bowls(rng, n, n_irrelevant=rng.integers(3) * n // 8)
    shifts = {"a": (0.0, 0.0)}  # category -> its penalty, and how far the first optimum moves
    if rng.random() < 1 / 3:
        for category in "bcde"[: rng.integers(1, 5)]:
            shifts[category] = rng.uniform(0.01, 0.2), rng.uniform(-0.4, 0.4)
        space["category"] = hpo.choice([str(c) for c in rng.permutation(list(shifts))])
    floor, height = draw_scale(rng)

    def loss(**config):
        d = numeric(space, config) - star
        penalty, shift = shifts[config.get("category", "a")]
        d[0] += shift
        return floor + height * (1 - (1 - penalty) * bowls(d))

    least, growth = 10 ** rng.uniform(-4, -2), 10 ** rng.uniform(-3, -1)
    return space, floor, loss, add_noise(lambda loss: least * height + growth * (loss - floor))


def noisy(rng):
    """Two to four parameters, and noise of a tenth to a half of what is to lose."""
    space, floor, loss, _ = smooth(rng, rng.integers(2, 5))
    middle_loss = np.median([loss(**decode(space, x)) for x in rng.random((100, n_dims(space)))])
    deviation = rng.uniform(0.1, 0.5) * (middle_loss - floor)
    return space, floor, loss, add_noise(lambda loss: deviation)


def draw_spoiled(rng, most):
    """(space, floor, loss, deviation, is_beyond(config)): a border passes near the optimum, and a
    tenth of the space at least, the share `most` at most, is beyond it."""
    space, star, kept, floor, height = draw_landscape(rng, rng.integers(2, 9))
    X = rng.random((1000, len(star)))

    def side(x):  # above the margin: beyond the border
        d = x - star
        return d @ normal + curvature * np.sum(d**2, axis=-1)

    share = 0.0
    while not 0.1 < share < most:
        normal = rng.standard_normal(len(star)) * (rng.random(len(star)) < 2.5 / len(star))
        curvature, margin = rng.uniform(-1, 1), rng.uniform(0.01, 0.1)
        share = (side(X) > margin).mean()
    deviation = 10 ** rng.uniform(-4, -1.5) * height
    loss = lambda **config: floor + height * (1 - kept(config))
    return space, floor, loss, deviation, lambda config: side(numeric(space, config)) > margin


def fail(rng):
    """A tenth to 60 % of the space fails. In half of the problems one trial in thirty fails by
    chance as well."""
    space, floor, plain_loss, deviation, is_beyond = draw_spoiled(rng, 0.6)
    chance = rng.choice([0, 1 / 30])
    loss = lambda **config: math.nan if is_beyond(config) else plain_loss(**config)

    def observe(config, loss, rng):
        return math.nan if rng.random() < chance else loss + deviation * rng.standard_normal()

    return space, floor, loss, observe


def diverge(rng):
    """Beyond the border, in a tenth to half of the space, losses are finite, huge and random."""
    space, floor, plain_loss, deviation, is_beyond = draw_spoiled(rng, 0.5)
    factor, decades = 10 ** rng.uniform(0.5, 1.5), rng.uniform(0, 11)
    loss = lambda **config: plain_loss(**config) * (factor if is_beyond(config) else 1)

    def observe(config, loss, rng):
        if is_beyond(config):
            return loss * 10 ** rng.uniform(0, decades)
        return loss + deviation * rng.standard_normal()

    return space, floor, loss, observe


def choices(rng):
    """A choice of two to four methods, each with parameters of its own. The best method has a
    narrow optimum; the others are broad, and better at most of their configurations."""
    methods = rng.permutation(list("abcd"))[: rng.integers(2, 5)].tolist()
    best, n_shared, n_own = methods[0], rng.integers(1, 3), rng.integers(1, 3)
    space = draw_space(rng, n_shared + n_own * len(methods))
    star = draw_star(rng, space)
    own = dict(zip(methods, np.arange(n_shared, len(star)).reshape(-1, n_own)))
    bowls = {m: draw_bowls(rng, n_shared + n_own, 1.5 if m == best else 0.5) for m in methods}
    penalties = {m: 0.0 if m == best else rng.uniform(0.05, 0.2) for m in methods}
    space["method"] = hpo.choice(sorted(methods))
    floor, height = draw_scale(rng)

    def loss(**config):
        method, d = config["method"], numeric(space, config) - star
        d = np.append(d[:n_shared], d[own[method]])
        return floor + height * (1 - (1 - penalties[method]) * bowls[method](d))

    deviation = 10 ** rng.uniform(-4, -1.5) * height
    return space, floor, loss, add_noise(lambda loss: deviation)


# ---- Real trainings, in milliseconds ----
N_TRAIN, N_VALID, N_REPETITIONS, N_EPOCHS = 128, 256, 3, 27
MODEL = {
    "learning_rate": hpo.loguniform(1e-4, 30), "momentum": hpo.reverseloguniform(0, 0.999),
    "batch_size": hpo.lograndint(8, 128), "weight_decay": hpo.loguniform(1e-7, 1),
    "n_units": hpo.lograndint(1, 64), "init_scale": hpo.loguniform(0.01, 10),
    "activation": hpo.choice(["relu", "tanh"]),
}  # fmt: skip
USUAL = {  # of those that an instance does not tune
    "momentum": 0.5, "batch_size": 16, "weight_decay": 1e-6, "n_units": 16, "init_scale": 1.0,
    "activation": "tanh"
}  # fmt: skip


def draw_task(rng):
    """(X, Y, metric): rows of a random network with noise, Y numbers or one-hot classes."""
    n_inputs, n_hidden = rng.integers(2, 9), rng.integers(1, 9)
    X = rng.standard_normal((N_TRAIN + N_VALID, n_inputs)) * 10 ** rng.uniform(-0.7, 0.5, n_inputs)
    metric = ["squared", "entropy", "error"][rng.integers(3)]
    n_outputs = rng.integers(1, 3) if metric == "squared" else rng.integers(2, 5)
    hidden = np.tanh(X @ rng.standard_normal((n_inputs, n_hidden)))
    Y = hidden @ rng.standard_normal((n_hidden, n_outputs))
    Y += rng.uniform(0.05, 0.5) * Y.std() * rng.standard_normal(Y.shape)
    Y = (Y - Y.mean(0)) / Y.std() if metric == "squared" else np.eye(n_outputs)[Y.argmax(1)]
    return X, Y, metric


def training(task, config):
    """Yields the validation losses (N_REPETITIONS,) after each epoch: SGD of a network with one
    hidden layer, from as many seeds at once. They are huge, inf or NaN where it diverges."""
    X, Y, metric = task
    rng, s, b = np.random.default_rng(0), N_REPETITIONS, int(config["batch_size"])
    is_relu, momentum = config["activation"] == "relu", config["momentum"]
    decay, rate = config["weight_decay"], config["learning_rate"]
    sizes = X.shape[1] + 1, config["n_units"] + 1, Y.shape[1]  # with a column of ones each
    X = np.hstack([X, np.ones((len(X), 1))])
    V = rng.standard_normal((s, sizes[0], sizes[1] - 1)) * config["init_scale"] / sizes[0] ** 0.5
    W = rng.standard_normal((s, sizes[1], sizes[2])) * config["init_scale"] / sizes[1] ** 0.5
    dV, dW = np.zeros_like(V), np.zeros_like(W)

    def forward(X):
        H = np.maximum(X @ V, 0) if is_relu else np.tanh(X @ V)
        H = np.concatenate([H, np.ones((*H.shape[:-1], 1))], axis=-1)
        outputs = H @ W
        if metric != "squared":  # probabilities
            outputs = np.exp(outputs - outputs.max(-1, keepdims=True))
            outputs /= outputs.sum(-1, keepdims=True)
        return H, outputs

    for _ in range(N_EPOCHS):
        order = rng.permuted(np.tile(np.arange(N_TRAIN), (s, 1)), axis=1)
        for i in range(0, N_TRAIN - b + 1, b):
            rows = order[:, i : i + b]
            with np.errstate(all="ignore"):
                H, outputs = forward(X[rows])
                error = (outputs - Y[rows]) / b
                back = (error @ W.swapaxes(1, 2))[..., :-1]
                back *= H[..., :-1] > 0 if is_relu else 1 - H[..., :-1] ** 2
                dV = momentum * dV + X[rows].swapaxes(1, 2) @ back + decay * V
                dW = momentum * dW + H.swapaxes(1, 2) @ error + decay * W
                V, W = V - rate * dV, W - rate * dW
        with np.errstate(all="ignore"):
            _, outputs = forward(X[N_TRAIN:])
            yield METRICS[metric](outputs, Y[N_TRAIN:])


METRICS = {  # losses (s,) of outputs (s, n, q) for Y (n, q)
    "squared": lambda outputs, Y: np.mean((outputs - Y) ** 2, axis=(1, 2)),
    "entropy": lambda outputs, Y: -np.mean(np.log(np.sum(outputs * Y, axis=2) + 1e-300), axis=1),
    "error": lambda outputs, Y: np.where(
        np.isfinite(outputs).all((1, 2)), np.mean(outputs.argmax(2) != Y.argmax(1), axis=1), np.nan
    ),
}


def sgd(rng):
    """The loss is the mean of the repetitions, NaN if any overflowed; a trial reports one of them.
    Each instance has its data, its loss and those of the parameters that are tuned."""
    task, _ = draw_task(rng), rng.choice(3)  # unused, but what is drawn later depends on it
    tuned = rng.permutation(list(USUAL))[: rng.integers(1, 7)]
    space = {name: MODEL[name] for name in MODEL if name == "learning_rate" or name in tuned}

    @functools.lru_cache(10_000)
    def train(*values):
        """Losses (N_EPOCHS, N_REPETITIONS)."""
        return np.array([*training(task, USUAL | dict(zip(space, values)))])

    def loss(**config):
        with np.errstate(over="ignore"):
            mean = train(*config.values())[-1].mean()
        return mean if math.isfinite(mean) else math.nan

    def curve(config, rng):
        losses = train(*config.values())[:, rng.integers(N_REPETITIONS)]
        config = USUAL | config  # seconds as a slow interpreter takes them, small batches most
        seconds = (1 + config["n_units"] / 16) * (1 + 64 / config["batch_size"])
        yield from with_seconds(losses, seconds, rng)

    observe = lambda config, loss, rng: rng.choice(train(*config.values())[-1])
    return space, math.nan, loss, observe, curve


# ---- Learning curves: a problem's loss is that of the last epoch ----
def with_seconds(losses, seconds, rng):
    """Yields (seconds, loss) of each epoch; all epochs of a trial are fast or slow together."""
    seconds *= rng.lognormal(0, 0.2)
    for loss in losses:
        yield seconds * rng.lognormal(0, 0.05), float(loss)


def with_noise(rng, height, losses, seconds):
    """(observe, curve) of losses(config) (N_EPOCHS,) and seconds(config) of an epoch."""
    of_trial, of_epoch = height * 10 ** rng.uniform(-3.5, -1.7, 2)  # deviations

    def curve(config, rng):
        noise = of_trial * rng.standard_normal() + of_epoch * rng.standard_normal(N_EPOCHS)
        yield from with_seconds(losses(config) + noise, seconds(config), rng)

    return add_noise(lambda loss: np.hypot(of_trial, of_epoch)), curve


def draw_curves(rng, draw_speed):
    """A smooth problem, and how its configurations come to their last losses.

    Each begins near the largest loss. What is still to go decays as exp(-speed e / N_EPOCHS), less
    a constant that makes it 0 at the last epoch. draw_speed(rng, star) -> function x -> speed.
    """
    space, star, kept, floor, height = draw_landscape(rng, rng.integers(2, 8))
    speed_at, cost, column = draw_speed(rng, star), rng.uniform(-1, 1), rng.integers(len(star))

    def losses(config):
        left = np.exp(-speed_at(numeric(space, config)) * np.arange(1, N_EPOCHS + 1) / N_EPOCHS)
        left = (left - left[-1]) / (1 - left[-1])
        return floor + height * (1 - kept(config) * (1 - left))

    def seconds(config):
        return 10 ** (cost * numeric(space, config)[column])

    last = lambda **config: losses(config)[-1]
    return space, floor, last, *with_noise(rng, height, losses, seconds)


def agree(rng):
    """Early ranks are right: all configurations learn at the same speed."""
    speed = 10 ** rng.uniform(0, 1.2)
    return draw_curves(rng, lambda rng, star: lambda x: speed)


def cross(rng):
    """Early ranks mislead: the best configuration is a slow learner, and towards the farther end
    of one parameter the speed rises, over all its range by 10 to 100 times."""

    def draw_speed(rng, star):
        column, decades, slow = rng.integers(len(star)), rng.uniform(1, 2), rng.uniform(1, 3)
        sign = 1 if star[column] < 0.5 else -1
        return lambda x: slow * 10 ** (decades * sign * (x[column] - star[column]))

    return draw_curves(rng, draw_speed)


def boosting(rng):
    """High rates are good early and not last: the bias exp(-rate e) falls fast, but large steps are
    coarse, and more effort than the data bear overfits. Other parameters have bowls."""
    n = rng.integers(1, 6)
    space = {"rate": hpo.loguniform(0.003, 3), **draw_space(rng, n)}
    star, bowls = draw_star(rng, space)[1:], draw_bowls(rng, n)
    (floor, height), coarse, bearable = draw_scale(rng), rng.uniform(0.1, 0.5), rng.uniform(3, 10)
    cost = rng.uniform(-1, 1)

    def share(rate, e):
        step = coarse * rate**0.5 / (1 + rate**0.5)
        over = 0.1 * np.maximum(np.log(rate * e / bearable), 0) ** 2
        return 1 - (1 - np.exp(-rate * e)) * (1 - step) + over

    def losses(config):
        kept = bowls(numeric(space, config)[1:] - star)
        kept = kept * (1 - share(config["rate"], np.arange(1, N_EPOCHS + 1)))
        return floor + height * (1 - kept)

    def seconds(config):
        return 10 ** (cost * numeric(space, config)[1])

    # the lowest over a fine grid of rates, as no formula gives it
    optimum = floor + height * share(np.geomspace(0.003, 3, 10**6), N_EPOCHS).min()
    return space, optimum, lambda **c: losses(c)[-1], *with_noise(rng, height, losses, seconds)


CURVES = {f.__name__: f for f in (agree, cross, boosting, sgd)}  # of --curves
ONCE = {f.__name__: f for f in (smooth, fail, diverge, choices, noisy, sgd)}  # one report a trial
FAMILIES = ONCE | CURVES


@functools.cache
def generated(family, number):
    """The problem of that number. The optimum of a training is not known: NaN."""
    rng = np.random.default_rng([zlib.crc32(family.encode()), number])
    space, optimum, *functions = FAMILIES[family](rng)
    return Problem(family, space, float(optimum), *functions)
