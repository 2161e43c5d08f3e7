"""Searchers: which configuration to try next. The file to read and to change.

A searcher is a class with two methods:

    __init__(self, space, seed=0, max_epochs=None)
    suggest(self, trials) -> (config, origin), or None when a finite space has nothing new

trials: all so far (`hpo.trial.Trial`), sorted by id. A trial has `curve`, [(epoch, loss)], and
`value`, the lowest loss, or None if it failed; a lower loss is better. Trials with the status
"running" are pending. origin: a word for the results, such as "random". `suggest` is a function of
its arguments alone, so every suggestion of a run can be recomputed from the run's folder.

GPSearch begins with a Latin hypercube. Then it models the losses by a Gaussian process and mutates
random points and good trials, to find the configuration with the highest expected improvement per
second. Its parts are in the order in which `suggest` calls them, and a subclass may replace any.

Stopping rules compare learning curves at rungs, the epochs 1, 3, 9, ..., and cut some off. If they
do, a trial has a loss for each rung that it reached, and the epoch is an input of the process.

Notation, after Rasmussen & Williams, Gaussian Processes for Machine Learning (2006), "R&W":

    X (n, d)        configurations encoded in [0, 1]^d; if curves are cut off, also the epoch
    y (n,)          scaled losses; (n, f) with f fantasies, draws of the function at pending trials
    groups (d,)     the hyperparameter of each column of X: a choice has a column for each category
    theta           ln lengthscale of each of the p hyperparameters, the ridge v (d,),
    (p + d + 2,)    ln signal variance, ln noise variance
    K, L, b         covariance of y, its Cholesky factor, L^-1 (y - mean); L_inv = L^-1
    h, S            features of the mean and the prior variances of their coefficients
    X_new (m, d)    candidates; mu (m, f), sigma (m, 1) posterior mean and standard deviation there
"""

import ast
import contextlib
import itertools
import math
import re
from dataclasses import dataclass

import numpy as np

from hpo.space import cast_value, check_space, config_key, decode, domains, encode, sample, snap


# ---- Settings ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Settings:
    """All numbers of GPSearch. `--searcher gp:NAME=VALUE,...` sets them for a run.

    A pair is the mean and standard deviation of a normal prior. The first page of
    experiments/LOG.md says what decided them, and `python -m experiments.ablate` measures them.
    """

    n_initial: int = 5  # trials before the model: the start configuration and a Latin hypercube
    category_period: int = 4  # every so many suggestions, the category tried least has its turn
    cost_power: float = 1.0  # improvement / (seconds per epoch)^cost_power; 0 ignores time
    margin: float = 0.1  # if curves are cut off, y must improve by more, as a trial costs an epoch
    n_fantasies: int = 4  # draws of the pending losses; the improvement is averaged over them
    n_scale: int = 20  # the first trials, whose losses give the scale
    clip: float = 2.0  # scaled losses above it are squashed
    outlier: float = 20.0  # scaled losses above it, of diverged trainings, count as failures
    failure: float = 0.5  # y of a failed trial; an outlier has y = clip
    failure_noise: float = 1.0  # noise variance added to both: one says little, many say much
    n_random: int = 500  # candidates from all of the space
    n_rounds: int = 4  # rounds in which the best candidates are mutated, by ever smaller steps
    n_fit: int = 100  # most rows to which theta is fitted; most failures; most times for the costs
    n_rows: int = 500  # rows in the posterior beside failed and pending trials: O(n^3)
    lengthscale: tuple = (math.log(0.5), 0.7)  # logarithm; a range has length 1
    choice_lengthscale: tuple = (math.log(2.8), 0.7)  # two categories are sqrt(2) apart
    epoch_lengthscale: tuple = (math.log(3.0), 0.3)  # early epochs predict the last one well
    ridge: tuple = (0.0, 1.5)  # each weight of the ridge v
    signal_variance: tuple = (0.0, 1.0)  # logarithm
    noise_variance: tuple = (math.log(0.01), 2.0)  # logarithm
    constant: tuple = (0.0, 3.16)  # the mean's constant term
    bowl: tuple = (0.5, 0.125)  # the mean's bowl, see `GaussianProcess.basis`
    trend: float = 0.5  # a trend in the mean has the standard deviation trend / sqrt(p)

    def __post_init__(self):
        for name, value in vars(self).items():
            default, numbers = getattr(Settings, name), np.array(value)
            kinds, lowest, expected = {
                int: ("iu", 1, "an integer, at least 1"),
                float: ("iuf", 0, "a number, at least 0"),
                tuple: ("iuf", 1e-300, "two numbers, a mean and a standard deviation above 0"),
            }[type(default)]
            is_good = numbers.shape == np.shape(default) and numbers.dtype.kind in kinds
            if not (is_good and np.isfinite(numbers).all() and numbers.flat[-1] >= lowest):
                raise ValueError(f"{name}: expected {expected}, got {value!r}")


# ---- Bayesian optimisation -----------------------------------------------------------------------
class GPSearch:
    """Gaussian-process optimisation: after a Latin hypercube, the highest expected improvement."""

    settings = Settings()

    def __init__(self, space, seed=0, max_epochs=None):
        check_space(space)
        self.space, self.seed, self.max_epochs = space, seed, max_epochs
        last = max_epochs or 1
        self.rungs = [3**k for k in range(40) if 3**k < last] + [last]
        self.progress = np.log(self.rungs) / (math.log(last) or 1)  # (r,) ln(epoch) / ln(last)
        n_columns = [domain.n_dims for domain in domains(space).values()]
        self.groups = np.repeat(np.arange(len(n_columns)), n_columns)
        self.n_categories = np.repeat(n_columns, n_columns)  # (d,) of its choice, else 1
        self.is_choice = self.n_categories > 1
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
        """The process given the trials; None if they are too few, or fewer than two have a loss.

        Sets model.tried (n, d), the trials to improve on, pending ones included, and only its own
        if a category is in turn; model.category; model.costs; and model.centre and model.unit: a
        loss is centre + unit y, unless it was squashed.
        """
        settings, X, losses = self.settings, self.encode(trials), losses_at(self.rungs, trials)
        is_pending = np.array([trial.status == "running" for trial in trials], bool)
        has_result = ~np.isnan(losses[:, 0]) & ~is_pending
        if len(trials) < settings.n_initial or has_result.sum() < 2:
            return None
        # 1. The observed rows: one of each trial at each rung if curves are cut off, as in MOBSTER
        # (Klein et al. 2020, 2003.10865), else one of each trial, at the last rung.
        if np.isnan(losses[has_result, -1]).any():
            inputs = np.stack([add_epoch(X, x) for x in self.progress], axis=1)  # (n, r, d + 1)
        else:
            inputs, losses = X[:, None], np.where(has_result, losses[:, -1], math.nan)[:, None]
        scaled, centre, unit = standardise(losses, settings)
        trial_of, rung_of = np.nonzero(np.isfinite(scaled))
        X_seen, y_seen = inputs[trial_of, rung_of], scaled[trial_of, rung_of]
        # 2. The hyperparameters of the process.
        kept = best_and_random(y_seen, settings.n_rows, rng)
        fit = best_and_random(y_seen, settings.n_fit, rng)
        theta = self.process(X_seen[fit], y_seen[fit]).fit()
        # 3. A failed trial has its row at the first rung, where every other trial has one, too. At
        # the last rung, which few reach, failures would make every configuration look bad.
        is_outlier = np.isinf(scaled[:, 0])
        failed = np.flatnonzero(is_outlier | [has_failed(t) for t in trials])[-settings.n_fit :]
        rows = np.concatenate([X_seen[kept], inputs[failed, 0], inputs[is_pending, -1]])
        y = np.append(y_seen[kept], np.where(is_outlier[failed], settings.clip, settings.failure))
        n_rows = len(kept), len(failed), is_pending.sum()
        extra_noise = np.repeat([0, settings.failure_noise, 0], n_rows)
        model = self.process(rows[: len(y)], y).condition(theta, extra_noise[: len(y)])
        if is_pending.any():  # 4. Pending trials have fantasies (Snoek et al. 2012, 1206.2944).
            draws = model.sample(X[is_pending], rng, settings.n_fantasies)
            y = np.concatenate([np.repeat(y[:, None], settings.n_fantasies, axis=1), draws])
            model = self.process(rows, y).condition(theta, extra_noise)
        model.tried = X[np.union1d(trial_of[kept], np.flatnonzero(is_pending))]
        model.category = self.category_in_turn(trials)
        if model.category is not None and (own := model.tried[:, model.category] > 0.5).any():
            model.tried = model.tried[own]
        model.centre, model.unit, model.costs = centre, unit, self.costs(trials)
        return model

    def encode(self, trials):
        """(n, d): the configurations of trials, in [0, 1], each computed once."""
        for t in trials:
            if t.id not in self.encoded or self.encoded[t.id][0] is not t.config:
                x = encode(self.space, tuned_values(self.space, t.config))
                self.encoded[t.id] = t.config, x
        return np.array([self.encoded[t.id][1] for t in trials]).reshape(-1, len(self.groups))

    def process(self, X, y):
        """The process that models the losses y at the rows X; the only place that makes one."""
        return GaussianProcess(X, y, self.groups, self.settings)

    def costs(self, trials):
        """Coefficients of ln(seconds per epoch) in `cost_features`, by ridge regression.

        None with fewer than three times. None while no other trial is running, so that a run with
        one worker does not depend on time and can be repeated on any machine.
        """
        timed = [t for t in trials if t.n_epochs and (t.ended or 0) > t.started and not t.earlier]
        timed = timed[-self.settings.n_fit :]
        is_alone = all(trial.status != "running" for trial in trials)
        if self.max_epochs is None or is_alone or len(timed) < 3:
            return None
        F = cost_features(self.encode(timed))
        log_seconds = np.log([(t.ended - t.started) / t.n_epochs for t in timed])
        penalty = 0.05 * np.diag(np.arange(F.shape[1]) > 0)  # the intercept is not shrunk
        return np.linalg.solve(F.T @ F + penalty, F.T @ log_seconds)

    def initial_point(self, i):
        """Point i (d,) of Latin hypercubes (McKay, Beckman and Conover 1979) of n_initial points.

        Each point has its own part of every range. A choice repeats a category only when all have
        been used. The first point is in the middle, where the start configuration is.
        """
        n, x = self.settings.n_initial, []
        block, k = divmod(i, n)
        rng = np.random.default_rng([self.seed, block, 1])
        for domain in domains(self.space).values():
            is_choice = domain.kind == "choice"
            n_parts, first = (domain.n_dims, 0) if is_choice else (n, n // 2)
            order = [first, *rng.permutation(np.delete(np.arange(n_parts), first))]
            part, place = order[k % n_parts], rng.random(n)[k]
            x += [*np.eye(n_parts)[part]] if is_choice else [(part + place) / n]
        return snap(self.space, np.array([x]))[0]

    # ---- The search for a candidate ----
    def candidates(self, model, trials, rng):
        """Points (m, d) of the space, those with the highest score first."""
        tried, mu = model.tried, model.predict(model.tried)[0]
        best, taken = mu.min(axis=0), {*marks(self.encode(trials))}
        good = tried[np.argsort(mu.mean(axis=1), kind="stable")][:5]
        anywhere = snap(self.space, rng.random((self.settings.n_random, len(self.groups))))
        X = np.concatenate([anywhere, self.mutate(np.repeat(good, 50, axis=0), 0.1, rng)])
        for i in range(self.settings.n_rounds + 1):
            if model.category is not None:
                X[:, self.groups == self.groups[model.category]] = 0
                X[:, model.category] = 1
            scores = self.score(model, X, best)
            scores[[mark in taken for mark in marks(X)]] = -np.inf
            top = X[np.argsort(-scores, kind="stable")[:40]]
            X = np.concatenate([top, self.mutate(np.repeat(top, 6, axis=0), 0.1 * 0.35**i, rng)])
        return top

    def category_in_turn(self, trials):
        """The column of the category that trials have had least often, or None if not in turn.

        Without turns, a category that is good at once gets all trials. The model then assumes that
        the others behave like it, for example that a hyperparameter does not matter.
        """
        if (len(trials) + 1) % self.settings.category_period:
            return None
        weights = [4 if trial.status == "failed" else 1 for trial in trials]  # a failure says more
        n = weights @ (self.encode(trials) > 0.5) * self.n_categories  # of k each should have 1/k
        n = np.where(self.is_choice, n, math.inf)
        # The limit ends the turns of a category that always fails.
        return n.argmin() if n.min() <= 3 * math.sqrt(len(trials)) else None

    def score(self, model, X, best):
        """ln of expected improvement per second^cost_power, (m,) at the points X (m, d)."""
        is_cut, noise = model.with_epoch, math.sqrt(model.noise_variance)
        mu, sigma = model.predict(X)
        scores = self.acquisition(mu, sigma, best - self.settings.margin * is_cut)
        scores = np.logaddexp.reduce(scores, axis=1) - math.log(scores.shape[1])  # ln of the mean
        # Augmented improvement (Huang et al. 2006, J. Global Optimization 34): a factor that is low
        # where the first report would tell little. Without it, noise would keep the search at the
        # incumbent, and stopped trials whose last epoch is uncertain would be tried again.
        sigma_first = (model.predict(X, 0.0)[1] if is_cut else sigma)[:, 0]  # at the first epoch
        scores += np.log1p(-noise / np.hypot(noise, sigma_first))
        if model.costs is not None:
            scores -= self.settings.cost_power * cost_features(X) @ model.costs
        if np.isnan(scores).any():
            raise ValueError("scores: expected numbers, got NaN; is it your own acquisition?")
        return scores

    def acquisition(self, mu, sigma, best):
        """ln E[max(best - f, 0)] (m, f), f ~ N(mu, sigma^2), of mu (m, f), sigma (m, 1), best (f,).

        The logarithm tells candidates apart where the improvement rounds to 0 (Ament et al. 2023,
        2310.20708). If yours is no logarithm, replace `score`, too, which averages over f.
        """
        return np.log(sigma) + log_h((best - mu) / sigma)

    def mutate(self, X, size, rng):
        """X (m, d) with some hyperparameters of each row moved by about `size`, choices redrawn."""
        p = self.groups[-1] + 1
        change = rng.random((len(X), p)) < max(0.3, 1.5 / p)
        change[np.arange(len(X)), rng.integers(p, size=len(X))] = True
        moved = np.where(self.is_choice, rng.random(X.shape), X + size * rng.normal(size=X.shape))
        return snap(self.space, np.where(change[:, self.groups], moved, X))

    # ---- After the run ----
    def recommend(self, trials):
        """(trial, epoch, mu, sigma): the trial with the lowest posterior mean of the loss; or None.

        The lowest of many noisy losses is partly luck; mu and sigma predict a new training. Only
        trials at the highest rung that any has reached are compared. None without a model, or if
        the lowest value belongs to a trial below this rung.
        """
        trials = [trial for trial in trials if trial.status != "running"]
        model = self.model(trials, np.random.default_rng([self.seed, len(trials)]))
        if model is None:
            return None
        is_reached = ~np.isnan(losses_at(self.rungs, trials))
        rung = is_reached.any(axis=0).sum() - 1
        furthest = [trial for trial, reached in zip(trials, is_reached[:, rung]) if reached]
        lowest = min(trial.value for trial in trials if trial.value is not None)
        if lowest < min(trial.value for trial in furthest):
            return None
        mu, sigma = model.predict(self.encode(furthest), self.progress[rung])
        i = mu[:, 0].argmin()
        epoch = self.rungs[rung] if self.max_epochs else None
        loss = model.centre + model.unit * mu[i, 0]
        deviation = model.unit * math.sqrt(sigma[i, 0] ** 2 + model.noise_variance)
        return furthest[i], epoch, float(loss), float(deviation)


def marks(X):
    """A hashable mark for each row of X, the same for equal configurations."""
    return [row.tobytes() for row in np.round(X, 9)]


def add_epoch(X, progress):
    """(n, d + 1): X (n, d) and a column with progress = ln(epoch) / ln(last epoch), 0 to 1."""
    return np.column_stack([X, np.full(len(X), progress)])


def cost_features(X):
    """(m, 1 + 2 d): one, and each column of X (m, d) and its square, from the middle."""
    return np.column_stack([np.ones(len(X)), X - 0.5, (X - 0.5) ** 2])


# ---- Losses --------------------------------------------------------------------------------------
def has_failed(trial):
    """Whether a trial failed, or had no report within --trial_timeout."""
    is_late = trial.status == "timeout" and not trial.curve and trial.error != "deadline"
    return trial.status == "failed" or is_late


def losses_at(rungs, trials):
    """(n, r): the lowest loss up to each rung; NaN if not reached. A done trial has reached all."""
    table, last = np.full((len(trials), len(rungs)), math.nan), len(rungs) - 1
    for trial, row in zip(trials, table):
        if trial.value is None:
            continue  # it has failed, or has no report
        lowest, rung = math.inf, 0
        for epoch, loss in trial.curve:
            lowest = min(lowest, loss)  # a NaN becomes inf
            while rung < last and max(epoch, 1) >= rungs[rung]:  # some count epochs from 0
                row[rung] = lowest
                rung += 1
        if trial.status == "done" or max(trial.n_epochs, 1) >= rungs[last]:
            row[rung:] = lowest
    return table


def standardise(losses, settings):
    """y (n, r), centre and unit of the losses (n, r) of n trials at r rungs, NaN if not reached.

    The first n_scale y at the first rung have mean 0 and variance 1. An outlier has y = inf. At a
    later rung, y is shifted to the median that the same trials had at the rung before. This removes
    what all curves have in common. With five trials or more it is also scaled to their spread, if
    that makes the unit smaller. At the highest rung a loss is centre + unit y, unless squashed.
    """
    if np.isinf(losses).any():
        raise ValueError("losses: expected finite numbers; a trial without one has status 'failed'")
    losses = losses / 4  # differences of 1e308 would overflow
    y, is_reached = np.full_like(losses, math.nan), ~np.isnan(losses)
    is_here, last = is_reached[:, 0], is_reached.any(axis=0).sum() - 1
    y[is_here, 0], unit = standardise_first(losses[is_here, 0], settings, losses.shape[1] > 1)
    for rung in range(1, last + 1):
        is_here = is_reached[:, rung]
        now, before = losses[is_here, rung], y[is_here, rung - 1]
        # The first trials that learn may lie thousands of units below those that do not.
        unit = max(unit, (np.median(now) - now.min()) / 2)
        if len(now) >= 5 and spread(now) and spread(before):
            unit = max(min(unit, spread(now) / spread(before)), 1e-300)  # subnormal losses
        z = np.median(before) + (now - np.median(now)) / unit
        y[is_here, rung] = squash(z, settings.clip, True)
    best = np.nanargmin(losses[:, last])
    centre = losses[best, last] - unit * y[best, last]
    # Few trials reach a later rung. A single one at chance would make all others look poor there,
    # and the fastest configurations would be tried.
    y[:, 1:] = np.minimum(y[:, 1:], settings.clip)
    return y, 4 * centre, 4 * unit


def standardise_first(losses, settings, is_cut):
    """y (n,) of the losses at the first rung, and its unit; is_cut: curves are cut off.

    The unit is a range of the better half, because the other half may diverge and report any
    numbers, and of the first trials, because later ones crowd at the optimum. If curves are cut off
    there are no outliers, as a trial that has not learnt anything yet would look like one.
    """
    n = settings.n_scale
    low, middle = np.quantile(losses[:n], (0.1, 0.4))
    better = losses[losses <= np.median(losses[:n])]
    unit = (middle - low) or np.ptp(better) or np.ptp(losses) or 1.0
    with np.errstate(over="ignore"):
        z = np.maximum((losses - middle) / unit, -1e9)
    limit = settings.outlier * max(1.0, -z[:n].min())  # wider if the better half nearly ties
    is_outlier = (z > limit) & (len(z) >= 8) & (not is_cut)  # fewer may be close by chance
    z = np.where(is_outlier, math.inf, squash(z, settings.clip, is_cut))
    usable = z[:n][~is_outlier[:n]]
    mean, deviation = usable.mean(), usable.std() or 1.0
    deviation = max(deviation, (mean - z.min()) / 20)  # all of the first may be at chance
    return (z - mean) / deviation, unit * deviation


def squash(z, clip, is_cut):
    """z up to clip, and above it at most clip + 1: how bad a bad trial is matters little.

    If curves are cut off it is at most clip + 4. Improvement is divided by the cost then, and the
    worst trials are often the fastest, so they must look much worse than the others.
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
    would promise low losses everywhere else. `fit` finds theta, and `condition` precedes `predict`.
    """

    def __init__(self, X, y, groups, settings):
        self.X, self.y, self.with_epoch = X, y, X.shape[1] > len(groups)
        self.groups = np.append(groups, groups[-1] + 1) if self.with_epoch else groups
        n_columns = np.bincount(self.groups)  # (p,) a choice has several
        self.p, self.categories = len(n_columns), n_columns[self.groups] > 1  # (d,)
        self.numeric = ~self.categories
        mean, sd = settings.ridge
        scales = [settings.choice_lengthscale if n > 1 else settings.lengthscale for n in n_columns]
        # Two categories differ in two columns.
        ridge = [(mean, sd * math.sqrt(0.5) if choice else sd) for choice in self.categories]
        if self.with_epoch:  # by the ridge, short trials would look too good
            self.numeric[-1], scales[-1], ridge[-1] = False, settings.epoch_lengthscale, (0.0, 1e-9)
        pairs = [*scales, *ridge, settings.signal_variance, settings.noise_variance]
        self.prior_mean, self.prior_sd = np.array(pairs).T
        self.h = self.basis(X)
        trends = [(0.0, settings.trend / math.sqrt(self.p))] * (self.h.shape[1] - 2)
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
        numeric = X[:, self.numeric]
        bowl = ((2 * numeric - 1) ** 2).sum(axis=1) / math.sqrt(max(1, numeric.shape[1]))
        waves = [np.cos(k * math.pi * numeric) / k for k in (1, 2, 3)]
        return np.column_stack([np.ones(len(X)), bowl, *waves, X[:, self.categories]])

    def split(self, theta):
        """Lengthscales (p,), ridge (d,), signal variance, noise variance."""
        p = self.p
        return np.exp(theta[:p]), theta[p:-2], math.exp(theta[-2]), math.exp(theta[-1])

    def correlation(self, theta, A, B):
        """(n, m) m(a) and -m'(a) / a, for a = sqrt(5) r between the rows of A (n, d), B (m, d)."""
        lengthscales, ridge, _, _ = self.split(theta)
        W = math.sqrt(5) * np.column_stack([np.diag(1 / lengthscales[self.groups]), ridge])
        A, B = A @ W, B @ W  # a is the distance between their rows
        squares = (A * A).sum(axis=1)[:, None] + (B * B).sum(axis=1) - 2 * A @ B.T
        return matern52(np.sqrt(np.maximum(squares, 0)))

    def log_posterior(self, theta):
        """ln p(y | X, theta) + ln p(theta) up to a constant, and its gradient; R&W eq. 5.8, 5.9."""
        X, (lengthscales, ridge, signal, noise) = self.X, self.split(theta)
        m, slope = self.correlation(theta, X, X)
        K = signal * m + self.mean_covariance + noise * np.eye(len(X))
        L_inv = np.linalg.inv(robust_cholesky(K))
        alpha = L_inv.T @ (L_inv @ self.residual)  # K^-1 (y - mean)
        deviation = (theta - self.prior_mean) / self.prior_sd
        value = np.log(np.diag(L_inv)).sum() - 0.5 * (self.residual @ alpha + deviation @ deviation)
        Q = np.outer(alpha, alpha) - L_inv.T @ L_inv  # d value / d K = Q / 2
        # d K_ij = -5/2 signal slope_ij d r_ij^2, and r^2 is quadratic in dx = x_i - x_j. The sums
        # over pairs are a graph's Laplacian, X^T (diag(W 1) - W) X = 1/2 sum W_ij dx dx^T.
        W = signal * Q * slope
        G = X.T @ (np.diag(W.sum(axis=1)) - W) @ X
        by_lengthscale = 5 * np.bincount(self.groups, np.diag(G)) / lengthscales**2
        by_variances = 0.5 * signal * np.sum(Q * m), 0.5 * noise * np.trace(Q)
        gradient = np.array([*by_lengthscale, *(-5 * G @ ridge), *by_variances])
        return value, gradient - deviation / self.prior_sd

    def fit(self):
        """theta at a maximum of the log posterior, by BFGS (Nocedal & Wright, Alg. 6.1).

        The ridge v starts along the slope of y. At 0 its gradient is 0, as v and -v are the same.
        """
        theta, centred = self.prior_mean.copy(), self.X - self.X.mean(axis=0)
        slope = self.prior_sd[self.p : -2] * (centred.T @ self.residual)
        theta[self.p : -2] += slope / (np.linalg.norm(slope) or 1.0)
        value, gradient = self.log_posterior(theta)
        H = 0.1 * np.diag(self.prior_sd**2)  # inverse Hessian of -value
        for _ in range(30):
            step = H @ gradient
            step *= min(1.0, 1.5 / np.abs(step).max())  # no component moves by more than 1.5
            if gradient @ step < 0.003:
                break
            for _ in range(8):  # backtracking, Armijo's condition
                new_value, new_gradient = self.log_posterior(theta + step)
                if new_value >= value + 1e-4 * gradient @ step:
                    break
                step = 0.4 * step
            else:  # no step was accepted
                break
            change = gradient - new_gradient
            if step @ change > 1e-10:  # eq. 6.17
                rho = 1 / (step @ change)
                V = np.eye(len(step)) - rho * np.outer(step, change)
                H = V @ H @ V.T + rho * np.outer(step, step)
            theta, value, gradient = theta + step, new_value, new_gradient
        return theta

    def condition(self, theta, extra_noise):
        """The process given y (R&W Alg. 2.1). extra_noise (n,): variances beyond that of theta."""
        self.theta = theta
        self.signal_variance, self.noise_variance = self.split(theta)[2:]
        K = self.kernel(self.X, self.h, self.X, self.h)
        K += np.diag(self.noise_variance + extra_noise)
        self.L_inv = np.linalg.inv(robust_cholesky(K))
        self.b = self.L_inv @ self.residual.reshape(len(self.X), -1)  # a column for each fantasy
        return self

    def predict(self, X_new, progress=1.0, is_joint=False):
        """mu (m, f), and sigma (m, 1) or the joint covariance (m, m), of the noiseless function."""
        X_new = add_epoch(X_new, progress) if self.with_epoch else X_new
        h = self.basis(X_new)
        A = self.kernel(X_new, h, self.X, self.h) @ self.L_inv.T
        mu = (h @ self.coefficients)[:, None] + A @ self.b
        if is_joint:
            return mu, self.kernel(X_new, h, X_new, h) - A @ A.T
        variance = self.signal_variance + h**2 @ self.S - np.einsum("ij,ij->i", A, A)
        return mu, np.sqrt(np.maximum(variance, 1e-12))[:, None]

    def sample(self, X_new, rng, n=1):
        """n joint draws (m, n) of the function without noise, given the first fantasy."""
        mu, covariance = self.predict(X_new, is_joint=True)
        return mu[:, :1] + robust_cholesky(covariance) @ rng.normal(size=(len(mu), n))

    def kernel(self, A, h_A, B, h_B):
        """(n, m) prior covariance of the function at A (n, d) and B (m, d), with features h."""
        m, _ = self.correlation(self.theta, A, B)
        return self.signal_variance * m + (h_A * self.S) @ h_B.T


def matern52(a):
    """Matern-5/2 correlation m at a = sqrt(5) r (R&W eq. 4.17), and -m'(a) / a."""
    decay = np.exp(-a)
    return (1 + a + a * a / 3) * decay, (1 + a) / 3 * decay


def robust_cholesky(K):
    """Lower Cholesky factor of K + jitter I, jitter the first of 1e-10, 1e-9, ... that works."""
    scale = max(1.0, np.mean(np.diag(K)))
    for power in range(-10, 1):
        with contextlib.suppress(np.linalg.LinAlgError):  # some rows are nearly the same
            return np.linalg.cholesky(K + 10.0**power * scale * np.eye(len(K)))
    raise np.linalg.LinAlgError("a covariance is not positive definite")


def log_h(z):
    """ln(phi(z) + z Phi(z)). Below -30, where the two terms cancel, by an asymptotic series."""
    near, u = np.maximum(z, -30), 1 / np.minimum(z, -30) ** 2
    Phi = 0.5 * np.vectorize(math.erfc, otypes=[float])(-near / math.sqrt(2))
    h = np.exp(-near * near / 2) / math.sqrt(2 * math.pi) + near * Phi
    tail = np.log(u * (1 - 3 * u + 15 * u * u) / math.sqrt(2 * math.pi)) - 0.5 / u
    return np.where(z > -30, np.log(h), tail)


# ---- Random search -------------------------------------------------------------------------------
class RandomSearch:
    """Independent draws from the space. No configuration comes twice while there is another."""

    def __init__(self, space, seed=0, max_epochs=None):
        check_space(space)
        self.space, self.seed = space, seed

    def suggest(self, trials):
        rng, tuned = np.random.default_rng([self.seed, len(trials)]), domains(self.space)
        if any(domain.n_values == math.inf for domain in tuned.values()):
            return sample(self.space, rng), "random"  # a float twice has probability 0
        key = lambda config: config_key(tuned_values(self.space, config))
        seen = {key(trial.config) for trial in trials}
        for _ in range(100):
            config = sample(self.space, rng)
            if key(config) not in seen:
                return config, "random"
        for values in itertools.product(*(domain.values for domain in tuned.values())):
            config = {**self.space, **dict(zip(tuned, values))}
            if key(config) not in seen:
                return config, "random"
        return None


def tuned_values(space, config):
    """The part of a configuration that is tuned, with exact types; ValueError names a value."""
    return {n: cast_value(n, domain, config.get(n)) for n, domain in domains(space).items()}


# ---- Registry ------------------------------------------------------------------------------------
SEARCHERS = {"random": RandomSearch, "gp": GPSearch}


def find_searcher(text):
    """The class of a name; "gp:n_initial=10,bowl=(0, 0.1)" is GPSearch with other Settings."""
    if text in SEARCHERS:
        return SEARCHERS[text]
    if not text.startswith("gp:"):
        names = ", ".join([*SEARCHERS, "gp:SETTING=VALUE,..."])
        raise ValueError(f"expected {names} or FILE.py:CLASS, got {text!r}")
    settings, changed = vars(Settings()), None
    with contextlib.suppress(SyntaxError, TypeError, ValueError):
        changed = ast.literal_eval("{" + re.sub(r"(\w+) *=", r"'\1':", text[3:]) + "}")
    if not isinstance(changed, dict) or changed.keys() - settings:
        names = ", ".join(settings)
        raise ValueError(f"{text}: expected SETTING=VALUE,...; the settings of gp are {names}")
    return type("GPSearch", (GPSearch,), {"settings": Settings(**changed)})
