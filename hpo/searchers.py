"""Searchers: which configuration to try next. The file to read and to change.

A searcher is a class with two methods. `suggest` is a function of its arguments alone, so every
suggestion of a run can be recomputed from the run's folder:

    __init__(self, space, seed=0, max_epochs=None)
    suggest(self, trials) -> (config, origin), or None when a finite space has nothing new

trials: every trial so far (`hpo.trial.Trial`), sorted by id. A lower loss is better. Trials with
the status "running" are pending. A trial has `curve`, [(epoch, loss)], and `value`, the lowest
loss, or None if it failed. origin: a word for the results, such as "random".

GPSearch scales the losses of all trials and models them by a Gaussian process. A pending trial has
no loss yet. GPSearch draws some from the model and takes each for the trial's loss, because
otherwise all workers would try the same place. It mutates random points and good trials to find the
configuration with the highest expected improvement per second. The file is in the order in which
`suggest` calls its parts. A subclass may replace any of them.

Notation, after Rasmussen & Williams, Gaussian Processes for Machine Learning (2006), "R&W":

    X (n, d)        configurations encoded in [0, 1]^d, and the epoch if curves are cut off;
                    y (n,) scaled losses, lower is better
    groups (d,)     the hyperparameter of each column of X: a choice has a column for each category
    theta           ln lengthscale of each of the p hyperparameters, the ridge v (d,),
    (p + d + 2,)    ln signal variance, ln noise variance
    K, L, alpha     covariance of y, its Cholesky factor, K^-1 (y - mean); L_inv = L^-1
    h, S            features of the mean and the prior variances of their coefficients
    X_new (m, d)    candidates; mu (m, f), sigma (m, 1) posterior mean and standard deviation there,
                    once for each of f fantasies: draws of what pending trials will report
    rung            an epoch 1, 3, 9, ... at which learning curves are compared
"""

import ast
import itertools
import math
import numbers
from dataclasses import dataclass

import numpy as np

from hpo.space import (
    Choice,
    cast_value,
    check_space,
    config_key,
    decode,
    domains,
    encode,
    n_configs,
    sample,
    snap,
)


# ---- Random search -------------------------------------------------------------------------------
class RandomSearch:
    """Independent draws from the space. No configuration comes twice while there is another."""

    def __init__(self, space, seed=0, max_epochs=None):
        check_space(space)
        self.space, self.seed = space, seed

    def suggest(self, trials):
        rng = np.random.default_rng([self.seed, len(trials)])  # one stream for each suggestion
        if n_configs(self.space) == math.inf:
            return sample(self.space, rng), "random"  # a float twice has probability 0
        seen = {tuned_key(self.space, trial.config) for trial in trials}
        draws = (sample(self.space, rng) for _ in range(100))
        for config in itertools.chain(draws, all_configs(self.space)):
            if tuned_key(self.space, config) not in seen:
                return config, "random"
        return None


def all_configs(space):
    """Yields the configurations of a finite space."""
    values = [domain.values for domain in domains(space).values()]
    for combination in itertools.product(*values):
        yield {**space, **dict(zip(domains(space), combination))}


def tuned_values(space, config):
    """The part of a configuration that is tuned, with exact types; ValueError names a value."""
    return {n: cast_value(n, domain, config.get(n)) for n, domain in domains(space).items()}


def tuned_key(space, config):
    """A string that is the same for configurations with the same tuned values."""
    return config_key(tuned_values(space, config))


# ---- Bayesian optimisation: settings -------------------------------------------------------------
@dataclass(frozen=True)
class Settings:
    """All numbers of GPSearch. `--searcher gp:NAME=VALUE,...` sets them for a run.

    The first page of experiments/LOG.md says what decided them. `python -m experiments.ablate`
    measures them. A pair is the mean and standard deviation of a normal prior.
    """

    n_initial: int = 5  # trials before the model: the start configuration and a Latin hypercube
    category_period: int = 4  # one suggestion of so many tries the category tried least
    cost_power: float = 1.0  # improvement / (seconds per epoch)^cost_power; 0 ignores time
    n_fantasies: int = 4  # draws of the pending losses, over which improvement is averaged
    n_scale: int = 20  # the losses of so many first trials give the scale
    clip: float = 2.0  # scaled losses above it are squashed
    outlier: float = 20.0  # scaled losses above it, of diverged trainings, count as failures
    failure: float = 0.5  # y of a failed trial; of an outlier it is `clip`
    failure_noise: float = 1.0  # its noise variance: one failure says little, many say much
    n_random: int = 500  # candidates from all of the space
    n_rounds: int = 4  # rounds in which the best candidates are mutated, by ever smaller steps
    n_fit: int = 100  # trials to which theta is fitted
    n_rows: int = 500  # trials in the posterior: O(n^3)
    lengthscale: tuple = (math.log(0.5), 0.7)  # logarithm; a range has length 1
    choice_lengthscale: tuple = (math.log(2.8), 0.7)  # two categories are sqrt(2) apart
    epoch_lengthscale: tuple = (math.log(2.0), 0.7)  # early epochs predict the last one well
    ridge: tuple = (0.0, 1.5)  # of each weight
    signal_variance: tuple = (0.0, 1.0)  # logarithm
    noise_variance: tuple = (math.log(0.01), 2.0)  # logarithm
    constant: tuple = (0.0, 3.16)  # of the mean
    bowl: tuple = (0.5, 0.125)  # of the mean, see `GaussianProcess.basis`
    trend: float = 0.5  # standard deviation of each trend in the mean, times sqrt(p)

    def __post_init__(self):
        for name, value in vars(self).items():
            default = getattr(Settings, name)
            is_pair, is_count = isinstance(default, tuple), isinstance(default, int)
            parts = value if is_pair and isinstance(value, tuple) else (value,)
            kind = numbers.Integral if is_count else numbers.Real
            is_good = all(isinstance(part, kind) and math.isfinite(part) for part in parts)
            is_good = is_good and len(parts) == 1 + is_pair
            if not is_good or (parts[-1] <= 0 if is_pair else parts[0] < is_count):
                pair = "two numbers, a mean and a standard deviation above 0"
                one = "an integer, at least 1" if is_count else "a number, at least 0"
                raise ValueError(f"{name}: expected {pair if is_pair else one}, got {value!r}")


# ---- Bayesian optimisation: the algorithm --------------------------------------------------------
class GPSearch:
    """Gaussian-process optimisation: after a Latin hypercube, the highest expected improvement."""

    settings = Settings()

    def __init__(self, space, seed=0, max_epochs=None):
        check_space(space)
        self.space, self.seed = space, seed
        rungs = [3**k for k in range(40) if max_epochs and 3**k < max_epochs]
        self.rungs = [*rungs, max_epochs]  # epochs at which curves are compared
        parts = list(domains(space).values())
        self.groups = np.repeat(np.arange(len(parts)), [domain.n_dims for domain in parts])
        self.is_choice = np.array([isinstance(parts[i], Choice) for i in self.groups])
        self.encoded = {}  # trial id -> (configuration, its encoding (d,))

    def suggest(self, trials):
        rng = np.random.default_rng([self.seed, len(trials)])
        model = self.model(trials, rng)
        if model is None:
            candidates, origin = self.initial_point(len(trials))[None], "initial"
        else:
            candidates, origin = self.candidates(model, trials, rng), "model"
        taken = marks(self.encode(trials))
        for x, mark in zip(candidates, marks(candidates)):
            if mark not in taken:
                return decode(self.space, x), origin
        return RandomSearch(self.space, self.seed).suggest(trials)

    def encode(self, trials):
        """(n, d): the configurations of trials, in [0, 1], each computed once."""
        for trial in trials:
            if self.encoded.get(trial.id, (None,))[0] is not trial.config:
                values = tuned_values(self.space, trial.config)
                self.encoded[trial.id] = trial.config, encode(self.space, values)
        return np.array([self.encoded[t.id][1] for t in trials]).reshape(-1, len(self.groups))

    def initial_point(self, i):
        """Point i (d,) of Latin hypercubes (McKay, Beckman and Conover 1979) of n_initial points.

        Of each range every point has a part of its own. A choice repeats a category only when all
        have been used. The first point is in the middle, where the start configuration is.
        """
        n, columns = self.settings.n_initial, []
        rng = np.random.default_rng([self.seed, i // n, 1])
        for domain in domains(self.space).values():
            is_choice = isinstance(domain, Choice)
            parts, middle = (domain.n_dims, 0) if is_choice else (n, n // 2)
            order = np.append(middle, rng.permutation(np.delete(np.arange(parts), middle)))
            part, place = order[i % n % parts], rng.random(n)[i % n]
            columns += list(np.arange(parts) == part) if is_choice else [(part + place) / n]
        return snap(self.space, np.array([columns], float))[0]

    # ---- The model ----
    def model(self, trials, rng):
        """The Model of the trials. None if they are too few, or fewer than two have a loss."""
        settings, last = self.settings, self.rungs[-1] or 1
        observed = [trial for trial in trials if trial.value is not None]
        ended = [trial for trial in observed if trial.status != "running"]
        if len(trials) < settings.n_initial or len(ended) < 2:
            return None
        # A stopped trial's loss would have fallen further. So if curves are cut off, a trial has a
        # row for each rung that it reached, and the epoch is an input, as in MOBSTER (Klein et al.
        # 2020, 2003.10865). Improvement is sought at the last epoch.
        is_cut = last > 1 and any(t.status != "done" and t.n_epochs < last for t in ended)
        observed = observed if is_cut else ended
        curves = [losses_at(self.rungs, t) if is_cut else [t.value] for t in observed]
        trial_of = np.repeat(np.arange(len(curves)), [len(curve) for curve in curves])
        rung_of = np.concatenate([np.arange(len(curve)) for curve in curves])
        y, centre, unit = standardise(np.concatenate(curves), trial_of, rung_of, settings, is_cut)
        usable = np.isfinite(y)
        diverged = {observed[i].id for i in trial_of[~usable]}  # these count as failed
        trial_of, rung_of, y = trial_of[usable], rung_of[usable], y[usable]

        progress = (np.log(self.rungs) / math.log(last))[rung_of] if is_cut else None
        X = self.encode(observed)
        rows = add_epoch(X[trial_of], progress)
        kept, fit = (best_and_random(y, n, rng) for n in (settings.n_rows, settings.n_fit))
        theta = self.process(rows[fit], y[fit], is_cut).fit()

        # A failed trial's row is at the first rung, because every trial has one there. Few trials
        # reach the last rung. There, failures would make every configuration look bad.
        failed = [trial for trial in trials if has_failed(trial) or trial.id in diverged]
        failed = failed[-settings.n_fit :]
        rows = np.concatenate([rows[kept], add_epoch(self.encode(failed), 0.0 if is_cut else None)])
        levels = [settings.clip if t.id in diverged else settings.failure for t in failed]
        y = np.append(y[kept], levels)
        extra_noise = np.repeat([0, settings.failure_noise], [len(kept), len(failed)])
        losses = self.process(rows, y, is_cut).posterior(theta, extra_noise)
        pending = self.encode([trial for trial in trials if trial.status == "running"])
        if len(pending):  # fantasies, as of Snoek et al. 2012, 1206.2944
            pending_rows = add_epoch(pending, 1.0 if is_cut else None)
            draws = losses.sample(pending_rows, rng, settings.n_fantasies)
            y = np.concatenate([np.repeat(y[:, None], draws.shape[1], axis=1), draws])
            process = self.process(np.concatenate([rows, pending_rows]), y, is_cut)
            losses = process.posterior(theta, np.append(extra_noise, np.zeros(len(pending))))
        tried = np.concatenate([X[np.unique(trial_of[kept])], pending])
        return Model(losses, tried, centre, unit, self.costs(trials))

    def process(self, X, y, with_epoch):
        groups = np.append(self.groups, self.groups[-1] + 1) if with_epoch else self.groups
        return GaussianProcess(X, y, groups, self.settings, with_epoch)

    def costs(self, trials):
        """Coefficients of ln(seconds per epoch) in `cost_features`, by ridge regression.

        None before three times are known, and if no trial is running. So a run with one worker can
        be repeated on any machine: its suggestions do not depend on time. With several workers the
        order of events differs each time anyway.
        """
        timed = [t for t in trials if t.n_epochs > 0 and t.ended and t.ended > t.started]
        timed = [t for t in timed if not t.earlier][-self.settings.n_fit :]  # trained in one piece
        is_idle = all(trial.status != "running" for trial in trials)
        if self.rungs[-1] is None or not self.settings.cost_power or is_idle or len(timed) < 3:
            return None
        F = cost_features(self.encode(timed))
        y = np.log([(trial.ended - trial.started) / trial.n_epochs for trial in timed])
        penalty = 0.05 * (np.arange(F.shape[1]) > 0)  # none of the mean
        return np.linalg.solve(F.T @ F + np.diag(penalty), F.T @ y)

    # ---- The search for a candidate ----
    def candidates(self, model, trials, rng):
        """Points (m, d) of the space, those with the highest score first."""
        taken, column = marks(self.encode(trials)), self.category_in_turn(trials)
        X, mu = self.to_improve(model, column)
        best = mu.min(axis=0)

        def in_turn(X):  # with the category whose turn it is
            if column is not None:
                X[:, self.groups == self.groups[column]] = 0
                X[:, column] = 1
            return X

        def score(X):
            scores = self.score(model, X, best)
            scores[[mark in taken for mark in marks(X)]] = -np.inf
            return scores

        tops = X[np.argsort(mu.mean(axis=1), kind="stable")][:5]
        X = snap(self.space, rng.random((self.settings.n_random, len(self.groups))))
        X = in_turn(np.concatenate([X, self.mutate(np.repeat(tops, 50, axis=0), 0.1, rng)]))
        scores = score(X)
        for i in range(self.settings.n_rounds):
            top = np.argsort(-scores, kind="stable")[:40]
            new = in_turn(self.mutate(np.repeat(X[top], 6, axis=0), 0.1 * 0.35**i, rng))
            X, scores = np.concatenate([X[top], new]), np.concatenate([scores[top], score(new)])
        return X[np.argsort(-scores, kind="stable")]

    def category_in_turn(self, trials):
        """The column of the category that trials have had least often, or None if not in turn.

        A category that is good at once gets all trials. The model then believes of the others what
        only this one has shown, for example that a hyperparameter does not matter.
        """
        columns = np.flatnonzero(self.is_choice)
        if not len(columns) or (len(trials) + 1) % self.settings.category_period:
            return None
        weights = [4 if trial.status == "failed" else 1 for trial in trials]  # a failure says more
        n = weights @ (self.encode(trials)[:, columns] > 0.5)
        n = (
            n * np.bincount(self.groups)[self.groups[columns]]
        )  # of k categories each should have 1/k
        # A category with many trials needs no turn. One that always fails would get too many.
        return columns[n.argmin()] if n.min() <= 3 * math.sqrt(len(trials)) else None

    def to_improve(self, model, column):
        """X, mu (m, f) of the trials to improve on: if a category is in turn, its own."""
        X = model.tried
        if column is not None and (own := X[:, column] > 0.5).any():
            X = X[own]
        return X, model.predict(X)[0]

    def score(self, model, X, best):
        """ln of expected improvement per second^cost_power, (m,) at the points X (m, d)."""
        # If curves are cut off, noise is small beside what later epochs may bring.
        is_cut = model.losses.process.X.shape[1] > X.shape[1]
        noise = 0.0 if is_cut else math.exp(model.losses.theta[-1] / 2)
        scores = self.acquisition(*model.predict(X), best, noise)
        scores = np.logaddexp.reduce(scores, axis=1) - math.log(scores.shape[1])
        if model.costs is not None:
            scores = scores - self.settings.cost_power * cost_features(X) @ model.costs
        if np.isnan(scores).any():
            raise ValueError("scores: expected numbers, got NaN; is it your own acquisition?")
        return scores

    def acquisition(self, mu, sigma, best, noise):
        """The logarithm (m, f) of what is maximised; `score` averages what is maximised.

        mu (m, f), sigma (m, 1): posterior. best (f,): the loss to improve on. noise: the standard
        deviation of an observation. A confidence bound is no logarithm, so the seconds cannot be
        subtracted from it: set cost_power to 0.
        """
        return log_augmented_improvement(mu, sigma, best, noise)

    def mutate(self, X, size, rng):
        """X (m, d) with some hyperparameters of each row moved by about `size`, choices redrawn."""
        p = self.groups[-1] + 1
        change = rng.random((len(X), p)) < max(0.3, 1.5 / p)
        change[np.arange(len(X)), rng.integers(p, size=len(X))] = True
        moved = np.where(self.is_choice, rng.random(X.shape), X + size * rng.normal(size=X.shape))
        return snap(self.space, np.where(change[:, self.groups], np.clip(moved, 0, 1), X))

    # ---- After the run ----
    def recommend(self, trials):
        """(trial, epoch, mu, sigma): the trial with the lowest posterior mean of the loss; or None.

        The lowest of many noisy values is lucky. The posterior mean tells what the trial would give
        if trained again. Trials at the highest rung that any has reached are compared. None without
        a model, and if the lowest value is of a trial that has not reached this rung.
        """
        model = self.model(trials, np.random.default_rng([self.seed, len(trials)]))
        if model is None:
            return None
        ended = [t for t in trials if t.value is not None and t.status != "running"]
        n_rungs = np.array([len(losses_at(self.rungs, trial)) for trial in ended])
        furthest = [ended[i] for i in np.flatnonzero(n_rungs == n_rungs.max())]
        if min(trial.value for trial in ended) < min(trial.value for trial in furthest):
            return None
        epoch = self.rungs[n_rungs.max() - 1]
        progress = math.log(epoch) / math.log(self.rungs[-1]) if epoch and self.rungs[-1] > 1 else 1
        mu, sigma = model.predict(self.encode(furthest), progress)
        i = mu.mean(axis=1).argmin()
        deviation = model.unit * np.hypot(sigma[i, 0], mu[i].std())
        return furthest[i], epoch, float(model.centre + model.unit * mu[i].mean()), float(deviation)


@dataclass(frozen=True)
class Model:
    """What the trials say; experiments/explain.py prints it.

    losses: Posterior of y. tried (n, d): the trials to improve on, pending ones included.
    centre, unit: loss = centre + unit y, unless it was squashed. costs: see `GPSearch.costs`.
    """

    losses: "Posterior"
    tried: np.ndarray
    centre: float
    unit: float
    costs: np.ndarray | None

    def inputs(self, X, progress=1.0):
        """The rows of the process for X (m, d) in [0, 1], by default at the last epoch."""
        has_epoch = self.losses.process.X.shape[1] > X.shape[1]
        return add_epoch(X, progress if has_epoch else None)

    def predict(self, X, progress=1.0):
        """mu (m, f) and sigma (m, 1) at X (m, d), by default at the last epoch."""
        return self.losses.predict(self.inputs(X, progress))

    def sample(self, X, rng):
        """One joint draw (m,) of the loss without noise at X (m, d), at the last epoch."""
        return self.losses.sample(self.inputs(X), rng)[:, 0]


def marks(X):
    """A hashable mark for each row of X, the same for equal configurations."""
    return [row.tobytes() for row in np.round(X, 9)]


def add_epoch(X, progress):
    """X (n, d) and, if it is not None, a column with progress = ln(epoch) / ln(last epoch)."""
    return X if progress is None else np.column_stack([X, np.full(len(X), progress)])


def cost_features(X):
    """(m, 1 + 2 d): one, and each column of X (m, d) and its square, from the middle."""
    return np.hstack([np.ones((len(X), 1)), X - 0.5, (X - 0.5) ** 2])


# ---- Losses --------------------------------------------------------------------------------------
def has_failed(trial):
    """True also for a trial that had no report within --trial_timeout."""
    is_late = trial.status == "timeout" and not trial.curve and trial.error != "deadline"
    return trial.status == "failed" or is_late


def losses_at(rungs, trial):
    """The lowest losses up to each rung that a trial has reached: all rungs if it is done."""
    best, losses = math.inf, []
    for epoch, loss in trial.curve:
        best = min(best, loss)
        # the first report is of the first rung, whatever its epoch: some count from 0
        while len(losses) < len(rungs) and (not losses or epoch >= (rungs[len(losses)] or 1)):
            losses.append(best)
    return losses + [best] * (len(rungs) - len(losses)) if trial.status == "done" else losses


def standardise(losses, trial_of, rung_of, settings, is_cut):
    """y (n,), centre and unit. At the highest rung a loss that is not squashed is centre + unit y.

    y is inf for an outlier. There are none if curves are cut off, as a trial that has not learnt
    anything yet may look like one.

    trial_of, rung_of (n,): the trial and the rung of each loss. Each later rung is mapped such that
    the trials that reached it keep the median and spread of their y. This removes what all learning
    curves have in common.
    """
    losses = np.array(losses, float) / 4  # differences of 1e308 would overflow
    if not np.isfinite(losses).all():
        raise ValueError("losses: expected finite numbers; a trial without one has status 'failed'")
    y, is_first = np.empty(len(losses)), rung_of == 0
    y[is_first], unit = standardise_first(losses[is_first], settings, is_cut)
    before = y[is_first]  # of each trial at its last rung so far
    for rung in range(1, rung_of.max() + 1):
        here = rung_of == rung
        now, then = losses[here], before[trial_of[here]]
        # The first trials that learn may lie thousands of units below those that do not.
        unit = max(unit, (np.median(now) - now.min()) / 2)
        if len(now) >= 5 and spread(now) and spread(then):
            unit = max(min(unit, spread(now) / spread(then)), 1e-300)  # subnormal losses
        y[here] = squash(np.median(then) + (now - np.median(now)) / unit, settings.clip, is_cut)
        before[trial_of[here]] = y[here]
    highest = np.isfinite(y) & (rung_of == rung_of.max())
    better = highest & (losses <= np.median(losses[highest]))  # these are not squashed
    unit = np.ptp(losses[better]) / np.ptp(y[better]) if np.ptp(y[better]) > 0 else unit
    return y, 4 * (losses[better].mean() - unit * y[better].mean()), 4 * unit


def standardise_first(losses, settings, is_cut):
    """y (n,) and its unit, such that the first n_scale have mean 0 and variance 1.

    The unit comes from two quantiles of the better half, as half of a space may diverge and report
    any numbers. It comes from the first trials, as later ones crowd at the optimum: in the unit of
    their spread, no untried configuration could be much better.
    """
    n = settings.n_scale
    low, middle = np.quantile(losses[:n], (0.1, 0.4))
    unit = (
        (middle - low) or np.ptp(losses[losses <= np.median(losses[:n])]) or np.ptp(losses) or 1.0
    )
    with np.errstate(over="ignore"):
        z = np.maximum((losses - middle) / unit, -1e9)
    limit = settings.outlier * max(1.0, -z[:n].min())  # the better half may all but tie
    is_outlier = (z > limit) & (len(z) >= 8) & (not is_cut)  # a few may be close by chance
    z = squash(z, settings.clip, is_cut)
    scaled = z[:n][~is_outlier[:n]]
    y, deviation = z - scaled.mean(), scaled.std() or 1.0
    shrink = max(1.0, -y.min() / deviation / 20)  # all of the first may be at chance
    return np.where(is_outlier, math.inf, y / (shrink * deviation)), unit * shrink * deviation


def squash(z, clip, is_cut):
    """z up to clip, and above it at most clip + 1: how bad a bad trial is matters little.

    If curves are cut off, improvement counts per second, and the worst trials are often the
    fastest. So they must look much worse than the others: at most clip + 4.
    """
    above = np.clip(z - clip, 0, 50)
    return np.minimum(z, clip) + (np.log1p(above) if is_cut else -np.expm1(-above))


def spread(y):
    """Half-width of the better half of y: the standard deviation of normal numbers.

    If this half almost ties, as at an accuracy of 1, a twentieth of the whole width.
    """
    low, middle, high = np.quantile(y, (0.16, 0.5, 0.84))
    return max(middle - low, 0.05 * (high - low)) or np.ptp(y)


def best_and_random(y, n, rng):
    """Indices of at most n rows: half of them the lowest y, the others drawn from the rest."""
    if len(y) <= n:
        return np.arange(len(y))
    order = np.argsort(y, kind="stable")
    return np.append(order[: n // 2], rng.choice(order[n // 2 :], n - n // 2, replace=False))


# ---- Gaussian process ----------------------------------------------------------------------------
class GaussianProcess:
    """A mean plus a function, of which (X, y) are noisy observations; y (n,), or (n, f) to predict.

        k(x, x') = signal m(sqrt(5) r) + h(x).(S h(x'))
        r^2 = sum_i |x_i - x'_i|^2 / lengthscale_i^2 + (v.x - v.x')^2

    with m Matern-5/2. The ridge v stands for a combination of hyperparameters that matters, such as
    learning rate against batch size: it makes r a factor-analysis distance (R&W section 5.1).
    The mean is linear in the features h of `basis`. Its coefficients are integrated out, with prior
    variances S (R&W section 2.7). The average of y would not do as a mean: most trials are near the
    optimum, so it would promise low losses everywhere else.
    """

    def __init__(self, X, y, groups, settings, with_epoch=False):
        self.X, self.y, self.groups = X, y, groups
        n_columns = np.bincount(groups)
        self.p, self.is_numeric = len(n_columns), n_columns[groups] == 1
        self.is_choice = ~self.is_numeric
        lengthscales = settings.lengthscale, settings.choice_lengthscale
        priors = [lengthscales[int(n > 1)] for n in n_columns]
        mean, sd = settings.ridge
        priors += [(mean, sd * (0.5**0.5 if n > 1 else 1)) for n in n_columns[groups]]
        priors += [settings.signal_variance, settings.noise_variance]
        if with_epoch:  # not in the ridge: it would make short trials promise too much
            priors[self.p - 1], priors[-3] = settings.epoch_lengthscale, (0.0, 1e-9)
            self.is_numeric[-1] = self.is_choice[-1] = False
        self.prior_mean, self.prior_sd = np.array(priors).T
        n_numeric, n_choice = self.is_numeric.sum(), self.is_choice.sum()
        shares = np.repeat([1, 1 / 2, 1 / 3, 1], [n_numeric, n_numeric, n_numeric, n_choice])
        trends = np.outer(shares, [0, settings.trend / math.sqrt(self.p)])
        constant_and_bowl = np.array([settings.constant, settings.bowl])
        self.coefficients, self.coefficients_sd = np.vstack([constant_and_bowl, trends]).T
        self.residual, self.mean_covariance = (y.T - self.mean(X)).T, self.mean_kernel(X, X)

    def basis(self, X):
        """h (m, 2 + 3 q + c) of q numeric columns and c of choices: 1, a bowl, and a trend of each.

        The bowl is sum_i (2 x_i - 1)^2 / sqrt(q). Users set ranges so that the optimum lies inside.
        A box has 2^q corners, all far from the data, so the model is unsure there. Without the bowl
        the first suggestions would go there. The trends are cos(k pi x_i) for k = 1, 2, 3, and the
        categories. With them each trial tells something about each hyperparameter by itself, as
        with an additive kernel (Duvenaud et al. 2011, 1112.4394).
        """
        numeric = X[:, self.is_numeric]
        bowl = ((2 * numeric - 1) ** 2).sum(axis=1) / math.sqrt(max(1, numeric.shape[1]))
        wave = np.cos(math.pi * numeric)
        waves = wave, 2 * wave**2 - 1, 4 * wave**3 - 3 * wave  # cos(k pi x) for k = 1, 2, 3
        return np.hstack([np.ones((len(X), 1)), bowl[:, None], *waves, X[:, self.is_choice]])

    def mean(self, X):
        """(m,) the prior mean at the rows of X (m, d)."""
        return self.basis(X) @ self.coefficients

    def mean_kernel(self, A, B):
        """(n, m) covariance that the unknown coefficients of the mean add."""
        return (self.basis(A) * self.coefficients_sd**2) @ self.basis(B).T

    def split(self, theta):
        """Lengthscales (p,), ridge (d,), signal variance, noise variance."""
        p = self.p
        return np.exp(theta[:p]), theta[p:-2], math.exp(theta[-2]), math.exp(theta[-1])

    def shape(self, theta, A, B):
        """(n, m) m and -m'(a) / a for the rows of A (n, d) and B (m, d)."""
        lengthscales, ridge, _, _ = self.split(theta)
        W = math.sqrt(5) * np.column_stack([np.diag(1 / lengthscales[self.groups]), ridge])
        return matern52(distances(A @ W, B @ W))

    def kernel(self, theta, A, B):
        """(n, m) prior covariance of the function at the rows of A (n, d) and B (m, d)."""
        return math.exp(theta[-2]) * self.shape(theta, A, B)[0] + self.mean_kernel(A, B)

    def log_posterior(self, theta):
        """ln p(y | X, theta) + ln p(theta) up to a constant, and its gradient; R&W eq. 5.8, 5.9."""
        lengthscales, ridge, signal, noise = self.split(theta)
        X, residual = self.X, self.residual
        m, slope = self.shape(theta, X, X)
        K = signal * m + self.mean_covariance + noise * np.eye(len(X))
        L = robust_cholesky(K)
        L_inv = inverse_of_lower(L)
        alpha = L_inv.T @ (L_inv @ residual)
        deviation = (theta - self.prior_mean) / self.prior_sd
        value = -0.5 * residual @ alpha - np.log(np.diag(L)).sum() - 0.5 * deviation @ deviation

        Q = np.outer(alpha, alpha) - L_inv.T @ L_inv  # d value / d K = Q / 2
        # d K_ij = -5/2 signal slope_ij d r_ij^2, and r^2 is quadratic in x_i - x_j: the sums over
        # pairs are those of a graph's Laplacian, X^T (diag(W 1) - W) X = 1/2 sum W_ij dx dx^T
        W = signal * Q * slope
        G = X.T @ (W.sum(axis=1)[:, None] * X - W @ X)
        by_lengthscale = 5 * np.bincount(self.groups, np.diag(G)) / lengthscales**2
        by_ridge = -5 * G @ ridge
        by_variances = 0.5 * signal * np.sum(Q * m), 0.5 * noise * np.trace(Q)
        gradient = np.array([*by_lengthscale, *by_ridge, *by_variances])
        return value, gradient - deviation / self.prior_sd

    def fit(self, n_steps=30):
        """theta at a maximum of the log posterior, by BFGS (Nocedal & Wright, Alg. 6.1).

        It starts at the mean of the prior, but for the ridge. There its gradient is 0, as v and -v
        are the same, so the ridge starts along the slope of y.
        """
        theta, centred = self.prior_mean.copy(), self.X - self.X.mean(axis=0)
        slope = self.prior_sd[self.p : -2] * (centred.T @ self.residual)
        theta[self.p : -2] += slope / (np.linalg.norm(slope) or 1.0)
        value, gradient = self.log_posterior(theta)
        H = 0.1 * np.diag(self.prior_sd**2)  # inverse Hessian of -value
        for _ in range(n_steps):
            step = H @ gradient
            step *= min(1.0, 1.5 / np.abs(step).max())  # no logarithm moves by more than 1.5
            if gradient @ step < 0.003:
                break
            for _ in range(8):  # backtracking, Armijo's condition
                new_value, new_gradient = self.log_posterior(theta + step)
                if new_value >= value + 1e-4 * gradient @ step:
                    break
                step = 0.4 * step
            else:
                break
            change = gradient - new_gradient
            if step @ change > 1e-10:
                rho, w = 1 / (step @ change), H @ change
                crossed = np.outer(w, step)
                growth = rho * (1 + rho * (change @ w)) * np.outer(step, step)
                H = H + growth - rho * (crossed + crossed.T)
            theta, value, gradient = theta + step, new_value, new_gradient
        return theta

    def posterior(self, theta, extra_noise):
        """The Posterior given y (R&W Alg. 2.1). extra_noise (n,): variances beyond theta's."""
        noise = np.diag(math.exp(theta[-1]) + extra_noise)
        L_inv = inverse_of_lower(robust_cholesky(self.kernel(theta, self.X, self.X) + noise))
        return Posterior(self, theta, L_inv, L_inv @ self.residual.reshape(len(self.X), -1))


@dataclass(frozen=True)
class Posterior:
    """A Gaussian process given (X, y), for each of the f columns of y."""

    process: GaussianProcess
    theta: np.ndarray
    L_inv: np.ndarray  # (n, n)
    b: np.ndarray  # (n, f): L^-1 (y - mean)

    def predict(self, X_new):
        """mu (m, f) and sigma (m, 1) of the function without noise."""
        process = self.process
        mu, A = self.mean(X_new)
        prior_variance = math.exp(self.theta[-2])
        prior_variance += process.basis(X_new) ** 2 @ process.coefficients_sd**2
        variance = prior_variance - np.einsum("ij,ij->i", A, A)
        return mu, np.sqrt(np.maximum(variance, 1e-12))[:, None]

    def sample(self, X_new, rng, n=1):
        """n joint draws (m, n) of the function without noise; of the first fantasy."""
        mu, A = self.mean(X_new)
        covariance = self.process.kernel(self.theta, X_new, X_new) - A @ A.T
        return mu[:, :1] + robust_cholesky(covariance) @ rng.normal(size=(len(mu), n))

    def mean(self, X_new):
        """mu (m, f), and A (m, n): the data reduce the prior covariance by A A^T."""
        A = self.process.kernel(self.theta, X_new, self.process.X) @ self.L_inv.T
        return self.process.mean(X_new)[:, None] + A @ self.b, A


def distances(A, B):
    """(n, m) Euclidean distances of the rows of A (n, d) and B (m, d)."""
    squares = (A * A).sum(axis=1)[:, None] + (B * B).sum(axis=1) - 2 * A @ B.T
    return np.sqrt(np.maximum(squares, 0))


def matern52(a):
    """Matern-5/2 correlation m at a = sqrt(5) r (R&W eq. 4.17), and -m'(a) / a."""
    decay = np.exp(-a)
    slope = (1 + a) * decay / 3
    return 3 * slope + a * a * decay / 3, slope


def robust_cholesky(K):
    """Lower Cholesky factor of K + jitter I, jitter the first of 1e-10, 1e-9, ... that works."""
    scale = max(1.0, np.mean(np.diag(K)))
    for power in range(-10, 1):
        try:
            return np.linalg.cholesky(K + 10.0**power * scale * np.eye(len(K)))
        except np.linalg.LinAlgError:  # some rows are nearly the same
            continue
    raise np.linalg.LinAlgError(f"covariance of {len(K)} rows is not positive definite")


def inverse_of_lower(L):
    """L^-1 of a lower triangular L by halves, as numpy has no triangular solver.

    [[A, 0], [B, C]]^-1 = [[A^-1, 0], [-C^-1 B A^-1, C^-1]]
    """
    n = len(L)
    if n <= 96:
        return np.linalg.inv(L)
    half, inverse = n // 2, np.zeros_like(L)
    A, C = inverse_of_lower(L[:half, :half]), inverse_of_lower(L[half:, half:])
    inverse[:half, :half], inverse[half:, half:] = A, C
    inverse[half:, :half] = -C @ (L[half:, :half] @ A)
    return inverse


# ---- Acquisition ---------------------------------------------------------------------------------
def log_augmented_improvement(mu, sigma, best, noise):
    """ln of E[max(best - f, 0)], f ~ N(mu, sigma^2), times 1 - noise / sqrt(noise^2 + sigma^2).

    The logarithm tells candidates apart where the improvement is 0 in floating point (Ament et al.
    2023, 2310.20708). The factor is of Huang et al. 2006 (J. Global Optimization 34). Where f is
    known better than an observation can tell, another observation says little. Without the factor
    noise, which keeps sigma up, would keep the search at the incumbent.
    """
    sd_observed = np.hypot(noise, sigma)
    log_factor = 2 * np.log(sigma) - np.log(sd_observed) - np.log(sd_observed + noise)
    return np.log(sigma) + log_h((best - mu) / sigma) + log_factor


def log_h(z):
    """ln(phi(z) + z Phi(z)). Below -30, where the two terms cancel, by an asymptotic series."""
    z = np.asarray(z, float)
    near, far = np.maximum(z, -30), np.minimum(z, -30)
    Phi = 0.5 * np.vectorize(math.erfc, otypes=[float])(-near / math.sqrt(2))
    h = np.exp(-near * near / 2) / math.sqrt(2 * math.pi) + near * Phi
    series = 1 - 3 / far**2 + 15 / far**4
    tail = -far * far / 2 - 0.5 * math.log(2 * math.pi) - 2 * np.log(-far) + np.log(series)
    return np.where(z > -30, np.log(h), tail)


# ---- Registry ------------------------------------------------------------------------------------
SEARCHERS = {"random": RandomSearch, "gp": GPSearch}


def find_searcher(text):
    """The class of a name; "gp:n_initial=10,bowl=(0, 0.1)" is GPSearch with other Settings."""
    name, colon, values = text.partition(":")
    if name not in SEARCHERS or (colon and name != "gp"):
        names = ", ".join([*SEARCHERS, "gp:SETTING=VALUE,..."])
        raise ValueError(f"expected {names} or FILE.py:CLASS, got {text!r}")
    if not colon:
        return SEARCHERS[name]
    try:
        call = ast.parse(f"Settings({values})", mode="eval").body
        changed = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
        is_call_of_names = not call.args
    except (SyntaxError, ValueError, AttributeError):
        is_call_of_names = False
    names = vars(Settings())
    if not is_call_of_names or changed.keys() - names:
        names = ", ".join(names)
        raise ValueError(f"{text}: expected SETTING=VALUE,...; the settings of gp are {names}")
    return type("GPSearch", (GPSearch,), {"settings": Settings(**changed)})
