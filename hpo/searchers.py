"""Searchers: which configuration to try next. The file to read and to change.

A searcher is a class with two methods. `suggest` is a function of its arguments alone, so every
suggestion of a run can be recomputed from the run's folder:

    __init__(self, space, seed=0, max_epochs=None)
    suggest(self, trials) -> (config, origin), or None when a finite space has nothing new

trials: all so far (`hpo.trial.Trial`), sorted by id. A trial has `curve`, [(epoch, loss)], and
`value`, the lowest loss, or None if it failed; a lower loss is better. Trials with the status
"running" are pending. origin: a word for the results, such as "random".

GPSearch models the scaled losses of all trials by a Gaussian process. It mutates random points and
good trials to find the configuration with the highest expected improvement per second. The class is
in the order in which `suggest` calls its parts, and a subclass may replace any of them. What they
call follows: the scaling of losses, then the process.

Notation, after Rasmussen & Williams, Gaussian Processes for Machine Learning (2006), "R&W":

    X (n, d)        configurations encoded in [0, 1]^d, and the epoch if curves are cut off
    y (n,)          scaled losses; (n, f) with f fantasies, draws of the function at pending trials
    groups (d,)     the hyperparameter of each column of X: a choice has a column for each category
    theta           ln lengthscale of each of the p hyperparameters, the ridge v (d,),
    (p + d + 2,)    ln signal variance, ln noise variance
    K, L, b         covariance of y, its Cholesky factor, L^-1 (y - mean); L_inv = L^-1
    h, S            features of the mean and the prior variances of their coefficients
    X_new (m, d)    candidates; mu (m, f), sigma (m, 1) posterior mean and standard deviation there
    rung            one of r epochs 1, 3, 9, ... at which learning curves are compared
"""

import ast
import bisect
import contextlib
import itertools
import math
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
    sample,
    snap,
)


# ---- Settings ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Settings:
    """All numbers of GPSearch. `--searcher gp:NAME=VALUE,...` sets them for a run.

    The first page of experiments/LOG.md says what decided them. `python -m experiments.ablate`
    measures them. A pair is the mean and standard deviation of a normal prior.
    """

    n_initial: int = 5  # trials before the model: the start configuration and a Latin hypercube
    category_period: int = 4  # one suggestion of so many tries the category tried least
    cost_power: float = 1.0  # improvement / (seconds per epoch)^cost_power; 0 ignores time
    margin: float = 0.1  # least improvement (y) if curves are cut off, as a look costs one epoch
    n_fantasies: int = 4  # draws of the pending losses, over which improvement is averaged
    n_scale: int = 20  # the losses of so many first trials give the scale
    clip: float = 2.0  # scaled losses above it are squashed
    outlier: float = 20.0  # scaled losses above it, of diverged trainings, count as failures
    failure: float = 0.5  # y of a failed trial; of an outlier it is `clip`
    failure_noise: float = 1.0  # its noise variance: one failure says little, many say much
    n_random: int = 500  # candidates from all of the space
    n_rounds: int = 4  # rounds in which the best candidates are mutated, by ever smaller steps
    n_fit: int = 100  # rows to which theta is fitted; also at most so many failures and times
    n_rows: int = 500  # rows in the posterior beside failed and pending trials: O(n^3)
    lengthscale: tuple = (math.log(0.5), 0.7)  # logarithm; a range has length 1
    choice_lengthscale: tuple = (math.log(2.8), 0.7)  # two categories are sqrt(2) apart
    epoch_lengthscale: tuple = (math.log(3.0), 0.3)  # early epochs predict the last one well
    ridge: tuple = (0.0, 1.5)  # of each weight
    signal_variance: tuple = (0.0, 1.0)  # logarithm
    noise_variance: tuple = (math.log(0.01), 2.0)  # logarithm
    constant: tuple = (0.0, 3.16)  # of the mean
    bowl: tuple = (0.5, 0.125)  # of the mean, see `GaussianProcess.basis`
    trend: float = 0.5  # standard deviation of each trend in the mean, times sqrt(p)

    def __post_init__(self):
        for name, value in vars(self).items():
            default, given = getattr(Settings, name), np.array(value)
            least, types, words = 0, "iuf", "a number, at least 0"
            if isinstance(default, int):
                least, types, words = 1, "iu", "an integer, at least 1"
            if isinstance(default, tuple):
                least, words = 1e-300, "two numbers, a mean and a standard deviation above 0"
            is_good = given.shape == np.shape(default) and given.dtype.kind in types
            if not is_good or not np.isfinite(given).all() or given.flat[-1] < least:
                raise ValueError(f"{name}: expected {words}, got {value!r}")


# ---- Bayesian optimisation -----------------------------------------------------------------------
class GPSearch:
    """Gaussian-process optimisation: after a Latin hypercube, the highest expected improvement."""

    settings = Settings()

    def __init__(self, space, seed=0, max_epochs=None):
        check_space(space)
        self.space, self.seed, self.max_epochs = space, seed, max_epochs
        last, parts = max_epochs or 1, list(domains(space).values())
        self.rungs = [*(3**k for k in range(40) if 3**k < last), last]
        self.progress = np.log(self.rungs) / (math.log(last) or 1)  # (r,) from 0 to 1
        self.groups = np.repeat(np.arange(len(parts)), [domain.n_dims for domain in parts])
        self.is_choice = np.array([isinstance(parts[i], Choice) for i in self.groups])
        self.encoded = {}  # trial id -> (configuration, its encoding (d,))

    def suggest(self, trials):
        rng = np.random.default_rng([self.seed, len(trials)])  # one stream for each suggestion
        model = self.model(trials, rng)
        if model is None:
            candidates, origin = self.initial_point(len(trials))[None], "initial"
        else:
            candidates, origin = self.candidates(model, trials, rng), "model"
        taken = {*marks(self.encode(trials))}
        for x, mark in zip(candidates, marks(candidates)):
            if mark not in taken:
                return decode(self.space, x), origin
        return RandomSearch(self.space, self.seed).suggest(trials)

    # ---- The model ----
    def model(self, trials, rng):
        """The Model of the trials. None if they are too few, or fewer than two have a loss."""
        settings, rungs, X = self.settings, self.rungs, self.encode(trials)
        is_pending = np.array([trial.status == "running" for trial in trials], bool)
        losses = np.array([losses_at(rungs, t) for t in trials], float).reshape(-1, len(rungs))
        has_ended = ~np.isnan(losses[:, 0]) & ~is_pending
        if len(trials) < settings.n_initial or has_ended.sum() < 2:
            return None
        # A stopped trial's loss would have fallen further. So if curves are cut off, a trial has a
        # row for each rung that it reached, and the epoch is an input, as in MOBSTER (Klein et al.
        # 2020, 2003.10865). Improvement is sought at the last epoch.
        is_cut = np.isnan(losses[has_ended, -1]).any()
        if not is_cut:
            losses = np.where(has_ended[:, None], losses[:, -1:], math.nan)
        y, centre, unit = standardise(losses, settings, is_cut)
        is_outlier = np.isinf(y[:, 0])
        # Alone at a later rung, which few reach, a trial at chance would make all others look poor
        # there, and the fastest configurations would be tried.
        y[:, 1:] = np.minimum(y[:, 1:], settings.clip)
        trial_of, rung_of = np.nonzero(np.isfinite(y))
        y, rows = y[trial_of, rung_of], add_epoch(X[trial_of], self.progress[rung_of], is_cut)
        kept, fit = (best_and_random(y, n, rng) for n in (settings.n_rows, settings.n_fit))
        theta = self.process(rows[fit], y[fit]).fit()

        # A failed trial has its row at the first rung, as every trial has one there. At the last
        # rung, which few reach, failures would make every configuration look bad.
        failed = np.flatnonzero(is_outlier | [has_failed(t) for t in trials])[-settings.n_fit :]
        rows = np.concatenate([rows[kept], add_epoch(X[failed], 0.0, is_cut)])
        y = np.append(y[kept], np.where(is_outlier[failed], settings.clip, settings.failure))
        extra_noise = np.repeat([0, settings.failure_noise], [len(kept), len(failed)])
        posterior = self.process(rows, y).posterior(theta, extra_noise)
        if is_pending.any():  # fantasies, as of Snoek et al. 2012, 1206.2944
            pending = add_epoch(X[is_pending], 1.0, is_cut)
            draws = posterior.sample(pending, rng, settings.n_fantasies)
            y = np.concatenate([np.tile(y[:, None], draws.shape[1]), draws])
            process = self.process(np.concatenate([rows, pending]), y)
            posterior = process.posterior(theta, np.append(extra_noise, np.zeros(len(draws))))
        tried = X[np.union1d(trial_of[kept], np.flatnonzero(is_pending))]
        return Model(posterior, tried, centre, unit, self.costs(trials))

    def encode(self, trials):
        """(n, d): the configurations of trials, in [0, 1], each computed once."""
        for trial in trials:
            if self.encoded.get(trial.id, (None,))[0] is not trial.config:
                values = tuned_values(self.space, trial.config)
                self.encoded[trial.id] = trial.config, encode(self.space, values)
        return np.array([self.encoded[t.id][1] for t in trials]).reshape(-1, len(self.groups))

    def process(self, X, y):
        """The process that models the losses y at the rows X; the only place that makes one."""
        return GaussianProcess(X, y, self.groups, self.settings)

    def costs(self, trials):
        """Coefficients of ln(seconds per epoch) in `cost_features`, by ridge regression.

        None before three times are known. None also if no other trial is running, so that a run
        with one worker does not depend on time and can be repeated on any machine.
        """
        timed = [t for t in trials if t.n_epochs > 0 and t.ended and t.ended > t.started]
        timed = [t for t in timed if not t.earlier][-self.settings.n_fit :]  # trained in one piece
        is_alone = all(trial.status != "running" for trial in trials)
        if self.max_epochs is None or not self.settings.cost_power or is_alone or len(timed) < 3:
            return None
        F = cost_features(self.encode(timed))
        y = np.log([(trial.ended - trial.started) / trial.n_epochs for trial in timed])
        penalty = 0.05 * (np.arange(F.shape[1]) > 0)  # none of the mean
        return np.linalg.solve(F.T @ F + np.diag(penalty), F.T @ y)

    def initial_point(self, i):
        """Point i (d,) of Latin hypercubes (McKay, Beckman and Conover 1979) of n_initial points.

        Each point has its own part of every range. A choice repeats a category only when all have
        been used. The first point is in the middle, where the start configuration is.
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

    # ---- The search for a candidate ----
    def candidates(self, model, trials, rng):
        """Points (m, d) of the space, those with the highest score first."""
        column = self.category_in_turn(trials)
        tried, mu = self.to_improve(model, column)
        best, taken = mu.min(axis=0), {*marks(self.encode(trials))}
        n_top = 40  # the candidates that are mutated in each round
        tops = tried[np.argsort(mu.mean(axis=1), kind="stable")][:5]
        new = snap(self.space, rng.random((self.settings.n_random, tried.shape[1])))
        new = np.concatenate([new, self.mutate(np.repeat(tops, 50, axis=0), 0.1, rng)])
        X, scores = new[:0], np.empty(0)
        for i in range(self.settings.n_rounds + 1):
            if column is not None:
                new[:, self.groups == self.groups[column]] = 0
                new[:, column] = 1
            new_scores = self.score(model, new, best)
            new_scores[[mark in taken for mark in marks(new)]] = -np.inf
            scores = np.append(scores[:n_top], new_scores)
            order = np.argsort(-scores, kind="stable")
            X, scores = np.concatenate([X[:n_top], new])[order], scores[order]
            new = self.mutate(np.repeat(X[:n_top], 6, axis=0), 0.1 * 0.35**i, rng)
        return X

    def category_in_turn(self, trials):
        """The column of the category that trials have had least often, or None if not in turn.

        Otherwise a category that is good at once gets all trials, and the model believes of the
        others what only this one has shown, such as that a hyperparameter does not matter.
        """
        columns = np.flatnonzero(self.is_choice & (np.bincount(self.groups)[self.groups] > 1))
        if not len(columns) or (len(trials) + 1) % self.settings.category_period:
            return None
        weights = [4 if trial.status == "failed" else 1 for trial in trials]  # a failure says more
        n = weights @ (self.encode(trials)[:, columns] > 0.5)
        n *= np.bincount(self.groups)[self.groups[columns]]  # of k categories each should have 1/k
        # Without a limit a category that always fails would get its share for ever.
        return columns[n.argmin()] if n.min() <= 3 * math.sqrt(len(trials)) else None

    def to_improve(self, model, column):
        """X, mu (m, f) of the trials to improve on: if a category is in turn, its own."""
        X = model.tried
        if column is not None and (own := X[:, column] > 0.5).any():
            X = X[own]
        return X, model.predict(X)[0]

    def score(self, model, X, best):
        """ln of expected improvement per second^cost_power, (m,) at the points X (m, d)."""
        is_cut, noise = model.losses.process.with_epoch, math.exp(model.losses.theta[-1] / 2)
        mu, sigma = model.predict(X)
        scores = self.acquisition(mu, sigma, best - self.settings.margin * is_cut)
        scores = np.logaddexp.reduce(scores, axis=1) - math.log(scores.shape[1])
        # times 1 - noise / sqrt(noise^2 + sigma^2), which is low where the first report would tell
        # little (Huang et al. 2006, J. Global Optimization 34). Without this factor, noise would
        # keep the search at the incumbent, and doubt about the last epoch at what was stopped.
        sigma = (model.predict(X, 0.0)[1] if is_cut else sigma)[:, 0]
        total = np.hypot(noise, sigma)
        scores += 2 * np.log(sigma) - np.log(total) - np.log(total + noise)
        if model.costs is not None:
            scores = scores - self.settings.cost_power * cost_features(X) @ model.costs
        if np.isnan(scores).any():
            raise ValueError("scores: expected numbers, got NaN; is it your own acquisition?")
        return scores

    def acquisition(self, mu, sigma, best):
        """The logarithm (m, f) of E[max(best - f, 0)], f ~ N(mu, sigma^2).

        mu (m, f), sigma (m, 1): posterior. best (f,): the loss to improve on. The logarithm tells
        candidates apart where the improvement rounds to 0 (Ament et al. 2023, 2310.20708). `score`
        averages over the f fantasies; replace `score` by what is no logarithm of an average.
        """
        return np.log(sigma) + log_h((best - mu) / sigma)

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

        The lowest of many noisy values is lucky; mu and sigma tell what a trial would give if
        trained again, with its noise. Trials at the highest rung that any has reached are compared.
        None without a model, or if the lowest value is of a trial that has not reached this rung.
        """
        trials = [trial for trial in trials if trial.status != "running"]
        model = self.model(trials, np.random.default_rng([self.seed, len(trials)]))
        if model is None:
            return None
        ended = [trial for trial in trials if trial.value is not None]
        n_rungs = np.isfinite([losses_at(self.rungs, trial) for trial in ended]).sum(axis=1)
        furthest = [trial for trial, n in zip(ended, n_rungs) if n == n_rungs.max()]
        if min(trial.value for trial in ended) < min(trial.value for trial in furthest):
            return None
        rung = n_rungs.max() - 1
        mu, sigma = model.predict(self.encode(furthest), self.progress[rung])
        i, epoch = mu[:, 0].argmin(), self.max_epochs and self.rungs[rung]
        deviation = math.hypot(sigma[i, 0], math.exp(model.losses.theta[-1] / 2))
        loss = model.centre + model.unit * mu[i, 0]
        return furthest[i], epoch, float(loss), float(model.unit * deviation)


@dataclass(frozen=True)
class Model:
    """What the trials say; experiments/explain.py prints it."""

    losses: "Posterior"  # of y
    tried: np.ndarray  # (n, d) the trials to improve on, pending ones included
    centre: float
    unit: float  # loss = centre + unit y, unless it was squashed
    costs: np.ndarray | None  # see GPSearch.costs

    def inputs(self, X, progress=1.0):
        """The rows (m, ...) of the process for X (m, d), by default at the last epoch."""
        return add_epoch(X, progress, self.losses.process.with_epoch)

    def predict(self, X, progress=1.0):
        """mu (m, f) and sigma (m, 1) at X (m, d), by default at the last epoch."""
        return self.losses.predict(self.inputs(X, progress))

    def sample(self, X, rng):
        """One joint draw (m,) of the loss without noise at X (m, d), at the last epoch."""
        return self.losses.sample(self.inputs(X), rng)[:, 0]


def marks(X):
    """A hashable mark for each row of X, the same for equal configurations."""
    return [row.tobytes() for row in np.round(X, 9)]


def add_epoch(X, progress, is_cut):
    """X (n, d), and if curves are cut off a column with progress = ln(epoch) / ln(last epoch)."""
    return np.column_stack([X, np.full(len(X), progress)]) if is_cut else X


def cost_features(X):
    """(m, 1 + 2 d): one, and each column of X (m, d) and its square, from the middle."""
    return np.hstack([np.ones((len(X), 1)), X - 0.5, (X - 0.5) ** 2])


# ---- Losses --------------------------------------------------------------------------------------
def has_failed(trial):
    """True also for a trial that had no report within --trial_timeout."""
    is_late = trial.status == "timeout" and not trial.curve and trial.error != "deadline"
    return trial.status == "failed" or is_late


def losses_at(rungs, trial):
    """The lowest loss up to each rung, a list; NaN at a rung that was not reached.

    A trial that is done has reached all, however few epochs it reported.
    """
    if trial.status == "failed" or not trial.curve:
        return [math.nan] * len(rungs)
    epochs, losses = zip(*trial.curve)
    epochs = [*itertools.accumulate(epochs, max, initial=1)][1:]  # some count from 0
    lowest = [*itertools.accumulate(losses, min, initial=math.inf)][1:]  # a NaN becomes inf
    is_whole = trial.status == "done" or epochs[-1] >= rungs[-1]
    lowest.append(lowest[-1] if is_whole else math.nan)
    return [lowest[bisect.bisect_left(epochs, rung)] for rung in rungs[:-1]] + lowest[-1:]


def standardise(losses, settings, is_cut):
    """y (n, r), centre and unit of the losses (n, r) of n trials at r rungs, NaN if not reached.

    Each later rung is shifted so that the trials that reached it keep the median of their y: what
    all learning curves have in common is gone. If these are five or more, the unit may shrink, so
    that they keep the spread of their y too. At the highest rung a loss is centre + unit y, unless
    it is squashed and not the lowest.
    """
    if np.isinf(losses).any():
        raise ValueError("losses: expected finite numbers; a trial without one has status 'failed'")
    losses = losses[:, ~np.isnan(losses).all(axis=0)] / 4  # differences of 1e308 would overflow
    y, reached = np.full_like(losses, math.nan), ~np.isnan(losses[:, 0])
    y[reached, 0], unit = standardise_first(losses[reached, 0], settings, is_cut)
    for rung in range(1, losses.shape[1]):
        reached = ~np.isnan(losses[:, rung])
        now, before = losses[reached, rung], y[reached, rung - 1]
        middle, level = np.median(now), np.median(before)
        # The first trials that learn may lie thousands of units below those that do not.
        unit = max(unit, (middle - now.min()) / 2)
        if len(now) >= 5 and spread(now) and spread(before):
            unit = max(min(unit, spread(now) / spread(before)), 1e-300)  # subnormal losses
        y[reached, rung] = squash(level + (now - middle) / unit, settings.clip, is_cut)
    best = np.nanargmin(losses[:, -1])
    return y, 4 * (losses[best, -1] - unit * y[best, -1]), 4 * unit


def standardise_first(losses, settings, is_cut):
    """y (n,) and its unit, such that the first n_scale y have mean 0 and variance 1.

    The unit comes from two quantiles of the better half, as half of a space may diverge and report
    any numbers, and from the first trials: in the unit of later ones, which crowd at the optimum,
    no untried configuration could be much better. y is inf for an outlier. If curves are cut off
    there are none, as a trial that has not learnt anything yet would look like one.
    """
    n = settings.n_scale
    low, middle = np.quantile(losses[:n], (0.1, 0.4))
    better = losses[losses <= np.median(losses[:n])]
    unit = (middle - low) or np.ptp(better) or np.ptp(losses) or 1.0
    with np.errstate(over="ignore"):
        z = np.maximum((losses - middle) / unit, -1e9)
    limit = settings.outlier * max(1.0, -z[:n].min())  # the better half may all but tie
    is_outlier = (z > limit) & (len(z) >= 8) & (not is_cut)  # a few may be close by chance
    z = squash(z, settings.clip, is_cut)
    usable = z[:n][~is_outlier[:n]]
    mean, deviation = usable.mean(), usable.std() or 1.0
    deviation = max(deviation, (mean - z.min()) / 20)  # all of the first may be at chance
    return np.where(is_outlier, math.inf, (z - mean) / deviation), unit * deviation


def squash(z, clip, is_cut):
    """z up to clip, and above it at most clip + 1: how bad a bad trial is matters little.

    If curves are cut off it is at most clip + 4. Improvement counts per second then, and the worst
    trials, often the fastest, must look much worse than the others.
    """
    above = np.clip(z - clip, 0, 50)
    return np.minimum(z, clip) + (np.log1p(above) if is_cut else -np.expm1(-above))


def spread(y):
    """Half-width of the better half of y; if this almost ties, a twentieth of the whole width."""
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
    """A mean plus a function, observed with noise as (X, y); y (n,), or (n, f) to predict.

        k(x, x') = signal m(sqrt(5) r) + h(x).(S h(x'))
        r^2 = sum_i |x_i - x'_i|^2 / lengthscale_i^2 + (v.x - v.x')^2

    with m Matern-5/2. The ridge v stands for a combination of hyperparameters that matters, such as
    learning rate against batch size: it makes r a factor-analysis distance (R&W section 5.1).
    The mean is linear in the features h of `basis`, and its coefficients are integrated out (R&W
    section 2.7). The average of y would not do as a mean: most trials are near the optimum, so it
    would promise low losses everywhere else.
    """

    def __init__(self, X, y, groups, settings):
        self.with_epoch = X.shape[1] > len(groups)
        self.X, self.y = X, y
        self.groups = np.append(groups, groups[-1] + 1) if self.with_epoch else groups
        n_columns = np.bincount(self.groups)
        self.p, self.is_choice = len(n_columns), n_columns[self.groups] > 1
        self.is_numeric = ~self.is_choice
        mean, sd = settings.ridge
        priors = [settings.choice_lengthscale if n > 1 else settings.lengthscale for n in n_columns]
        priors += [(mean, sd * math.sqrt(0.5) if choice else sd) for choice in self.is_choice]
        priors += [settings.signal_variance, settings.noise_variance]
        if self.with_epoch:  # not in the ridge: it would make short trials promise too much
            priors[self.p - 1], priors[-3] = settings.epoch_lengthscale, (0.0, 1e-9)
            self.is_numeric[-1] = False
        self.prior_mean, self.prior_sd = np.array(priors).T
        self.h = self.basis(X)
        trends = (self.h.shape[1] - 2) * [(0.0, settings.trend / math.sqrt(self.p))]
        self.coefficients, sd = np.array([settings.constant, settings.bowl, *trends]).T
        self.S = sd**2
        self.residual = (y.T - self.h @ self.coefficients).T
        self.mean_covariance = (self.h * self.S) @ self.h.T

    def basis(self, X):
        """h (m, 2 + 3 q + c) of q numeric columns and c of choices: 1, a bowl, and trends of each.

        The bowl is sum_i (2 x_i - 1)^2 / sqrt(q). Users set ranges so that the optimum lies inside.
        A box has 2^q corners, all far from the data: without the bowl the first suggestions go
        there. The trends are cos(k pi x_i) / k, k = 1, 2, 3, and the categories. By them each trial
        tells something about each hyperparameter (additive kernels: Duvenaud 2011, 1112.4394).
        """
        numeric = X[:, self.is_numeric]
        bowl = ((2 * numeric - 1) ** 2).sum(axis=1) / math.sqrt(max(1, numeric.shape[1]))
        wave = np.cos(math.pi * numeric)
        waves = wave, (2 * wave**2 - 1) / 2, (4 * wave**3 - 3 * wave) / 3  # cos(k pi x) / k
        return np.hstack([np.ones((len(X), 1)), bowl[:, None], *waves, X[:, self.is_choice]])

    def split(self, theta):
        """Lengthscales (p,), ridge (d,), signal variance, noise variance."""
        p = self.p
        return np.exp(theta[:p]), theta[p:-2], math.exp(theta[-2]), math.exp(theta[-1])

    def shape(self, theta, A, B):
        """(n, m) m and -m'(a) / a for the rows of A (n, d) and B (m, d)."""
        lengthscales, ridge, _, _ = self.split(theta)
        W = math.sqrt(5) * np.column_stack([np.diag(1 / lengthscales[self.groups]), ridge])
        A, B = A @ W, B @ W
        squares = (A * A).sum(axis=1)[:, None] + (B * B).sum(axis=1) - 2 * A @ B.T
        return matern52(np.sqrt(np.maximum(squares, 0)))

    def kernel(self, theta, A, h_A, B, h_B):
        """(n, m) prior covariance of the function at the rows of A (n, d) and B (m, d).

        h_A, h_B: their features.
        """
        return math.exp(theta[-2]) * self.shape(theta, A, B)[0] + (h_A * self.S) @ h_B.T

    def log_posterior(self, theta):
        """ln p(y | X, theta) + ln p(theta) up to a constant, and its gradient; R&W eq. 5.8, 5.9."""
        lengthscales, ridge, signal, noise = self.split(theta)
        X = self.X
        m, slope = self.shape(theta, X, X)
        L = robust_cholesky(signal * m + self.mean_covariance + noise * np.eye(len(X)))
        L_inv = inverse_of_lower(L)
        alpha = L_inv.T @ (L_inv @ self.residual)  # K^-1 (y - mean)
        deviation = (theta - self.prior_mean) / self.prior_sd
        value = -0.5 * (self.residual @ alpha + deviation @ deviation) - np.log(np.diag(L)).sum()

        Q = np.outer(alpha, alpha) - L_inv.T @ L_inv  # d value / d K = Q / 2
        # d K_ij = -5/2 signal slope_ij d r_ij^2, and r^2 is quadratic in dx = x_i - x_j. The sums
        # over pairs are a graph's Laplacian, X^T (diag(W 1) - W) X = 1/2 sum W_ij dx dx^T.
        W = signal * Q * slope
        G = X.T @ (W.sum(axis=1)[:, None] * X - W @ X)
        by_lengthscale = 5 * np.bincount(self.groups, np.diag(G)) / lengthscales**2
        by_ridge = -5 * G @ ridge
        by_variances = 0.5 * signal * np.sum(Q * m), 0.5 * noise * np.trace(Q)
        gradient = np.array([*by_lengthscale, *by_ridge, *by_variances])
        return value, gradient - deviation / self.prior_sd

    def fit(self, n_steps=30):
        """theta at a maximum of the log posterior, by BFGS (Nocedal & Wright, Alg. 6.1).

        It starts at the mean of the prior, and the ridge along the slope of y: at 0, where v and -v
        are the same, it has no gradient.
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
            if step @ change > 1e-10:  # eq. 6.17
                rho, w = 1 / (step @ change), H @ change
                crossed = np.outer(w, step)
                growth = rho * (1 + rho * (change @ w)) * np.outer(step, step)
                H = H + growth - rho * (crossed + crossed.T)
            theta, value, gradient = theta + step, new_value, new_gradient
        return theta

    def posterior(self, theta, extra_noise):
        """The Posterior given y (R&W Alg. 2.1). extra_noise (n,): variances beyond theta's."""
        noise = np.diag(math.exp(theta[-1]) + extra_noise)
        K = self.kernel(theta, self.X, self.h, self.X, self.h)
        L_inv = inverse_of_lower(robust_cholesky(K + noise))
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
        h, mu, A = self.mean_and_reduction(X_new)
        prior = math.exp(self.theta[-2]) + h**2 @ self.process.S
        variance = prior - np.einsum("ij,ij->i", A, A)
        return mu, np.sqrt(np.maximum(variance, 1e-12))[:, None]

    def sample(self, X_new, rng, n=1):
        """n joint draws (m, n) of the function without noise; of the first fantasy."""
        h, mu, A = self.mean_and_reduction(X_new)
        covariance = self.process.kernel(self.theta, X_new, h, X_new, h) - A @ A.T
        return mu[:, :1] + robust_cholesky(covariance) @ rng.normal(size=(len(mu), n))

    def mean_and_reduction(self, X_new):
        """Features h, mu (m, f), and A (m, n): the data reduce the prior covariance by A A^T."""
        process, h = self.process, self.process.basis(X_new)
        A = process.kernel(self.theta, X_new, h, process.X, process.h) @ self.L_inv.T
        return h, (h @ process.coefficients)[:, None] + A @ self.b, A


def matern52(a):
    """Matern-5/2 correlation m at a = sqrt(5) r (R&W eq. 4.17), and -m'(a) / a."""
    decay = np.exp(-a)
    slope = (1 + a) * decay / 3
    return 3 * slope + a * a * decay / 3, slope


def robust_cholesky(K):
    """Lower Cholesky factor of K + jitter I, jitter the first of 1e-10, 1e-9, ... that works."""
    scale = max(1.0, np.mean(np.diag(K)))
    for power in range(-10, 1):
        with contextlib.suppress(np.linalg.LinAlgError):  # some rows are nearly the same
            return np.linalg.cholesky(K + 10.0**power * scale * np.eye(len(K)))
    raise np.linalg.LinAlgError("a covariance is not positive definite")


def inverse_of_lower(L):
    """L^-1 of a lower triangular L by halves, as numpy has no triangular solver."""
    if len(L) <= 64:
        return np.linalg.inv(L)
    n, inverse = len(L) // 2, np.zeros_like(L)
    inverse[:n, :n] = A = inverse_of_lower(L[:n, :n])
    inverse[n:, n:] = C = inverse_of_lower(L[n:, n:])
    inverse[n:, :n] = -C @ (L[n:, :n] @ A)
    return inverse


def log_h(z):
    """ln(phi(z) + z Phi(z)). Below -30, where the two terms cancel, by an asymptotic series."""
    z = np.asarray(z, float)
    near, far = np.maximum(z, -30), np.minimum(z, -30)
    Phi = 0.5 * np.vectorize(math.erfc, otypes=[float])(-near / math.sqrt(2))
    h = np.exp(-near * near / 2) / math.sqrt(2 * math.pi) + near * Phi
    u = 1 / far**2
    tail = -far * far / 2 + np.log(u * (1 - 3 * u + 15 * u * u) / math.sqrt(2 * math.pi))
    return np.where(z > -30, np.log(h), tail)


# ---- Random search -------------------------------------------------------------------------------
class RandomSearch:
    """Independent draws from the space. No configuration comes twice while there is another."""

    def __init__(self, space, seed=0, max_epochs=None):
        check_space(space)
        self.space, self.seed = space, seed

    def suggest(self, trials):
        rng = np.random.default_rng([self.seed, len(trials)])
        if any(domain.n_values == math.inf for domain in domains(self.space).values()):
            return sample(self.space, rng), "random"  # a float twice has probability 0
        seen = {config_key(tuned_values(self.space, trial.config)) for trial in trials}
        draws = (sample(self.space, rng) for _ in range(100))
        for config in itertools.chain(draws, all_configs(self.space)):
            if config_key(tuned_values(self.space, config)) not in seen:
                return config, "random"
        return None


def all_configs(space):
    """Yields the configurations of a finite space."""
    tuned = domains(space)
    for values in itertools.product(*(domain.values for domain in tuned.values())):
        yield {**space, **dict(zip(tuned, values))}


def tuned_values(space, config):
    """The part of a configuration that is tuned, with exact types; ValueError names a value."""
    return {n: cast_value(n, domain, config.get(n)) for n, domain in domains(space).items()}


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
    names, changed = vars(Settings()), None
    with contextlib.suppress(SyntaxError, ValueError, AttributeError):
        call = ast.parse(f"Settings({values})", mode="eval").body
        changed = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    if changed is None or call.args or changed.keys() - names:
        names = ", ".join(names)
        raise ValueError(f"{text}: expected SETTING=VALUE,...; the settings of gp are {names}")
    return type("GPSearch", (GPSearch,), {"settings": Settings(**changed)})
