"""Searchers: which configuration to try next. The file to read and to change.

A searcher is a class with two methods; `suggest` is a function of its arguments alone, so that every suggestion of a
run can be recomputed from the run's folder:

    __init__(self, space, seed=0, max_epochs=None)
    suggest(self, trials) -> (config, origin), or None when a finite space has nothing new

trials: every trial so far (`hpo.trial.Trial`), sorted by id; losses are lower-is-better, those with the status "running"
are pending. The next trial's id is len(trials). origin: a word for the results, such as "random" or "model".

Notation, after Rasmussen & Williams, Gaussian Processes for Machine Learning (2006), "R&W":

    X (n, d)        configurations encoded in [0, 1]^d; y (n,) their standardised losses, lower is better
    theta           ln lengthscale of each of the p hyperparameters, the ridge v (d,), logit of the additive share w,
    (p + d + 3,)    ln signal variance, ln noise variance; the epoch, where it is an input, has no entry of v
    K, L, alpha     covariance of y, its Cholesky factor, K^-1 y; L_inv = L^-1
    X_new (m, d)    candidates; mu, sigma (m,) posterior mean and standard deviation there
"""

import functools
import itertools
import logging
import math
import numbers
from dataclasses import dataclass, replace

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

logger = logging.getLogger(__name__)


# ---- Arguments of both searchers, and random search -----------------------------------------------------------------
def check_arguments(space, seed, max_epochs):
    """ValueError where they are no space, no integer from 0, no integer from 1 or None."""
    check_space(space)
    for name, value, lowest in (("seed", seed, 0), ("max_epochs", 1 if max_epochs is None else max_epochs, 1)):
        if not isinstance(value, numbers.Integral) or value < lowest:
            raise ValueError(f"{name}: expected an integer, at least {lowest}, got {value!r}")


class RandomSearch:
    """Independent draws from the space, no configuration twice while there is another."""

    def __init__(self, space, seed=0, max_epochs=None):
        check_arguments(space, seed, max_epochs)
        self.space, self.seed = space, seed

    def suggest(self, trials):
        rng = np.random.default_rng([self.seed, len(trials)])  # one stream for each suggestion
        if n_configs(self.space) == math.inf:
            return sample(self.space, rng), "random"  # a float twice has probability 0
        seen = {config_key(hyperparameters(self.space, trial)) for trial in trials}
        for _ in range(100):
            config = sample(self.space, rng)
            if config_key(without_constants(self.space, config)) not in seen:
                return config, "random"
        left = unseen_configs(self.space, seen)
        return (left[rng.integers(len(left))], "random") if left else None


def unseen_configs(space, seen):
    """The configurations of a finite space that are not among `seen` (config_key of each's hyperparameters), by listing."""
    names, values = zip(*((name, domain.values) for name, domain in domains(space).items()))
    configs = (dict(zip(names, combination)) for combination in itertools.product(*values))
    return [{**space, **config} for config in configs if config_key(config) not in seen]


def without_constants(space, config):
    return {name: config[name] for name in domains(space)}


def hyperparameters(space, trial):
    """{name: value} of a trial, whatever its constants; ValueError names the trial and what does not fit the space."""
    try:
        return {name: cast_value(name, domain, trial.config.get(name)) for name, domain in domains(space).items()}
    except ValueError as error:
        raise ValueError(f"trial {trial.id}: {error}") from None


# ---- Gaussian process -----------------------------------------------------------------------------------------------
def distances(A, B):
    """(n, m) Euclidean distances of the rows of A (n, d) and B (m, d)."""
    if A.shape[1] == 1:
        return np.abs(A - B.T)
    return np.sqrt(np.maximum((A * A).sum(1)[:, None] + (B * B).sum(1) - 2 * A @ B.T, 0))


def decays(A, B, a):
    """e^-a (n, m) of the distances a of the rows of A (n, d) and B (m, d), which are at least 0.

    On a line it is the lesser of e^x e^-y and e^-x e^y: n + m exponentials in place of n m, and a kernel in a third less time.
    """
    if A.shape[1] == 1 and max(A.max(), B.max()) < 700:  # e^709 is the largest number
        B = B.T
        return np.minimum(np.exp(A) * np.exp(-B), np.exp(-A) * np.exp(B))
    return np.exp(-a)


def matern52(a, decay):
    """Matern-5/2 correlation k at a = sqrt(5) r (R&W eq. 4.17), and -k'(a) / a, which its gradient needs; decay: e^-a."""
    slope, k = 1 + a, a * a
    slope *= decay
    slope *= 1 / 3  # in place: the arrays are the cost
    k *= decay
    k *= 1 / 3
    k += 3 * slope
    return k, slope


def robust_cholesky(K):
    """Lower Cholesky factor of K + jitter I, the jitter the first of 1e-10, 1e-9, ... at the scale of K that works."""
    scale = max(1.0, np.mean(np.diag(K)))
    for power in range(-10, 1):
        try:
            return np.linalg.cholesky(K + 10.0**power * scale * np.eye(len(K)))
        except np.linalg.LinAlgError:  # rows that are nearly the same
            logger.debug("Cholesky factor of %d rows: jitter grows from 1e%d", len(K), power)
    raise np.linalg.LinAlgError(f"covariance of {len(K)} rows is not positive definite, whatever the jitter")


def inverse_of_lower(L):
    """L^-1 of a lower triangular L by halves: [[A, 0], [B, C]]^-1 = [[A^-1, 0], [-C^-1 B A^-1, C^-1]]."""
    n = len(L)
    if n <= 96:
        return np.linalg.inv(L)
    half, inverse = n // 2, np.zeros_like(L)
    A, C = inverse_of_lower(L[:half, :half]), inverse_of_lower(L[half:, half:])
    inverse[:half, :half], inverse[half:, half:] = A, C
    inverse[half:, :half] = -C @ (L[half:, :half] @ A)
    return inverse


def append_rows(L_inv, A, C):
    """L^-1 of [[K, B^T], [B, D]] from that of K (n, n), A = B L^-T (m, n) and the Schur complement C = D - A A^T."""
    C_inv = inverse_of_lower(robust_cholesky(C))
    return np.block([[L_inv, np.zeros((len(L_inv), len(C)))], [-C_inv @ A @ L_inv, C_inv]])


@dataclass(frozen=True)
class Prior:
    """Independent normal distributions (mean, standard deviation) of theta's entries and of the mean's coefficients."""

    lengthscale: tuple = (math.log(0.5), 0.7)  # logarithm
    choice_lengthscale: tuple = (math.log(2.0), 0.7)  # what is good with one category is mostly good with another
    epoch_lengthscale: tuple = (math.log(2.0), 0.7)  # of ln(epoch): early epochs predict the last well
    ridge: tuple = (0.0, 1.5)  # of each of its weights
    additive: tuple = (0.0, 1.5)  # logit
    signal_variance: tuple = (0.0, 1.0)  # logarithm
    noise_variance: tuple = (math.log(0.01), 2.0)  # logarithm
    constant: tuple = (0.0, 3.16)  # of the mean
    bowl: tuple = (0.5, 0.125)  # of the mean, see `GaussianProcess.basis`

    def __post_init__(self):
        for name, pair in vars(self).items():
            lowest = "at least" if name in ("constant", "bowl") else "above"
            are_two = np.ndim(pair) == 1 and len(pair) == 2
            if not are_two or not all(isinstance(number, numbers.Real) and math.isfinite(number) for number in pair):
                raise ValueError(f"Prior.{name}: expected two numbers, mean and standard deviation, got {pair!r}")
            if pair[1] < 0 or (lowest == "above" and pair[1] == 0):
                raise ValueError(f"Prior.{name}: expected a standard deviation {lowest} 0, got {pair[1]!r}")


class GaussianProcess:
    """A mean plus a function, additive in part, of which (X, y) are noisy observations.

        k(x, x') = signal ((1 - w) m(r) + w/p sum_i m(r_i)) + h(x).(S h(x'))
        r_i = |x_i - x'_i| / lengthscale_i,  r^2 = sum_i r_i^2 + (v.x - v.x')^2

    with m Matern-5/2. The ridge v is a combination of hyperparameters that matters as such, as learning rates do against
    batch sizes: it makes r a factor-analysis distance (R&W section 5.1). The epoch has no part in it: after a few short
    trials poor ones would promise much at the last epoch. w is the share that is additive in the p hyperparameters: it
    learns from every trial about each by itself (Duvenaud et al. 2011, 1112.4394). The mean is linear in h, of which `basis`
    tells, and its coefficients integrated out, with variances S (R&W section 2.7): the average of y, mostly of trials near
    the optimum, would be too optimistic elsewhere.

    groups (d,): the hyperparameter of each column of X, as the columns of one choice belong together.
    correlation: m, as a function of a = sqrt(5) r and e^-a; returns (m, -m'(a) / a).
    with_epoch: whether the last column of X is the epoch, ln(epoch) / ln(last epoch).
    """

    def __init__(self, X, y, groups, prior=Prior(), correlation=matern52, with_epoch=False):
        self.X, self.y, self.groups, self.p = X, y, groups, int(groups.max()) + 1
        self.prior, self.correlation = prior, correlation
        priors = [prior.lengthscale if n == 1 else prior.choice_lengthscale for n in np.bincount(groups)]
        if with_epoch:
            priors[-1] = prior.epoch_lengthscale
        self.d_ridge = len(groups) - with_epoch
        priors += self.d_ridge * [prior.ridge] + [prior.additive, prior.signal_variance, prior.noise_variance]
        self.prior_mean, self.prior_sd = np.array(priors).T
        ends = np.cumsum(np.bincount(groups))
        self.columns = [slice(None), *map(slice, ends - np.bincount(groups), ends)]  # of each term of k
        self.numeric = np.flatnonzero(np.bincount(groups)[groups[: self.d_ridge]] == 1)  # no choices, no epoch
        self.coefficients, self.coefficients_sd = np.array([prior.constant, prior.bowl]).T
        self.residual, self.mean_covariance = y - self.mean(X), self.mean_kernel(X, X)

    def basis(self, X):
        """(m, 2): 1, and a bowl, sum_i (2 x_i - 1)^2 / sqrt(q) over the q numeric hyperparameters, at the rows of X (m, d).

        Who sets a range expects the best inside. Of corners, far from all trials and from each other, there are 2^q:
        where the mean does not rise to them, they get too many of the first trials.
        """
        bowl = ((2 * X[:, self.numeric] - 1) ** 2).sum(axis=1) / math.sqrt(max(1, len(self.numeric)))
        return np.column_stack([np.ones(len(X)), bowl])

    def mean(self, X):
        """(m,) the mean expected before any y, at the rows of X (m, d)."""
        return self.basis(X) @ self.coefficients

    def mean_kernel(self, A, B):
        """(n, m) what not knowing the mean's coefficients adds to the covariance of the rows of A (n, d) and B (m, d)."""
        return (self.basis(A) * self.coefficients_sd**2) @ self.basis(B).T

    def scales(self, theta):
        """Lengthscales (p,), ridge (d,), additive share, signal variance, noise variance."""
        lengthscales, ridge = np.exp(theta[: self.p]), theta[self.p : -3]
        return lengthscales, ridge, 1 / (1 + math.exp(-theta[-3])), math.exp(theta[-2]), math.exp(theta[-1])

    def kernel(self, theta, A, B):
        """(n, m) prior covariance of the function at the rows of A (n, d) and B (m, d)."""
        lengthscales, ridge, share, signal, _ = self.scales(theta)
        weights = signal * np.append(1 - share, np.full(self.p, share / self.p))
        scale = math.sqrt(5) / lengthscales[self.groups]
        K = self.mean_kernel(A, B)
        A, B = (np.column_stack([C * scale, math.sqrt(5) * C[:, : self.d_ridge] @ ridge]) for C in (A, B))
        n = 1 + 16384 // len(B)  # rows of a block that stays in the cache: 3 times faster
        for block, rows in ((K[i : i + n], A[i : i + n]) for i in range(0, len(A), n)):
            for columns, weight in zip(self.columns, weights):
                a = distances(rows[:, columns], B[:, columns])
                block += weight * self.correlation(a, decays(rows[:, columns], B[:, columns], a))[0]
        return K

    @functools.cached_property
    def pairs(self):
        """Of the pairs i < j of rows of X: i, j, x_i - x_j (pairs, d), and its norm for each hyperparameter (p, pairs)."""
        i, j = np.triu_indices(len(self.X), 1)
        difference = self.X[i] - self.X[j]
        norms = [np.linalg.norm(difference[:, columns], axis=1) for columns in self.columns[1:]]
        return i, j, difference[:, : self.d_ridge], norms

    def log_posterior(self, theta):
        """ln p(y | X, theta) + ln p(theta) up to a constant, and its gradient, shaped as theta; R&W eq. 5.8, 5.9."""
        lengthscales, ridge, share, signal, noise = self.scales(theta)
        i, j, difference, norms = self.pairs  # half of K: a third less time
        terms = [norm * (math.sqrt(5) / lengthscale) for norm, lengthscale in zip(norms, lengthscales)]
        along = difference @ (math.sqrt(5) * ridge)
        together = np.sqrt(sum(a * a for a in terms) + along * along)
        joint, *additive = [self.correlation(a, np.exp(-a)) for a in (together, *terms)]
        k_joint, weight = signal * (1 - share) * joint[0], signal * share / self.p
        k_additive = weight * sum(correlation for correlation, _ in additive)
        K = np.zeros((len(self.X), len(self.X)))
        K[i, j] = k_joint + k_additive
        K += K.T + self.mean_covariance + (signal + noise) * np.eye(len(K))
        L = robust_cholesky(K)
        L_inv = inverse_of_lower(L)
        alpha = L_inv.T @ (L_inv @ self.residual)
        deviation = (theta - self.prior_mean) / self.prior_sd
        value = -0.5 * self.residual @ alpha - np.log(np.diag(L)).sum() - 0.5 * deviation @ deviation

        Q = np.outer(alpha, alpha) - L_inv.T @ L_inv  # d value / d K = Q / 2, so q / 2 twice for each pair
        q, trace = Q[i, j], np.trace(Q)
        w_joint = signal * (1 - share) * q * joint[1]  # d k / d ln l = weight slope a^2, of that hyperparameter's a
        by_lengthscale = [(w_joint + weight * q * slope) @ (a * a) for (_, slope), a in zip(additive, terms)]
        by_ridge = -math.sqrt(5) * (w_joint * along) @ difference
        by_share = q @ ((1 - share) * k_additive - share * k_joint)
        by_signal = q @ (k_joint + k_additive) + 0.5 * signal * trace
        gradient = np.array([*by_lengthscale, *by_ridge, by_share, by_signal, 0.5 * noise * trace])
        return value, gradient - deviation / self.prior_sd

    def fit(self):
        """theta at a maximum of the log posterior, climbed to from the prior's mean.

        But the ridge starts along the slope of y: at 0, where v and -v are the same, its gradient is 0 and it would stay.
        Where short lengthscales and little noise are a better start, a climb from there too: a function with many waves
        can pass for noise, and there is a valley between the two.
        """
        start, X = self.prior_mean.copy(), self.X[:, : self.d_ridge]
        slope = (X - X.mean(0)).T @ (self.residual - self.residual.mean())
        start[self.p : -3] += slope / (np.linalg.norm(slope) or 1.0)
        wavy = start.copy()
        wavy[[*range(self.p), -1]] -= 2.5
        value, theta = self.climb(start)
        if self.log_posterior(wavy)[0] > self.log_posterior(start)[0]:
            other_value, other = self.climb(wavy)
            if other_value > value and other[-1] < theta[-1]:  # it is there to explain more, not to find more noise
                return other
        return theta

    def climb(self, theta, n_steps=30):
        """Log posterior and theta at the end of a climb by BFGS (Nocedal & Wright, Alg. 6.1) from theta."""
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
                H = H + rho * ((1 + rho * (change @ w)) * np.outer(step, step) - crossed - crossed.T)
            theta, value, gradient = theta + step, new_value, new_gradient
        return value, theta

    def posterior(self, theta, incumbents, pending=(), n_fantasies=1, rng=None, failed=(), hopeless=False):
        """Posterior given y and, at the rows of `pending` (m, d), n_fantasies joint samples of the function there.

        The fantasies (Snoek et al. 2012, 1206.2944) share one L, as the covariance does not depend on y.
        incumbents: rows whose lowest posterior mean given y is to be improved on, as are the samples at `pending`.
        failed: rows (m, d) that have no loss: as if they had had the one expected of them, as that nothing is known
        there would be a reason to try them again. But where most do fail, as `hopeless` (m,) tells, an expected loss
        below the incumbent would be one too: there it is at least 0.25 above.
        """
        X, y, noise = self.X, self.residual[:, None], math.exp(theta[-1])
        L_inv = inverse_of_lower(robust_cholesky(self.kernel(theta, X, X) + noise * np.eye(len(X))))
        b = L_inv @ y
        best = (self.mean(incumbents)[:, None] + self.kernel(theta, incumbents, X) @ (L_inv.T @ b)).min(axis=0)
        if len(failed):
            A, mean = self.kernel(theta, failed, X) @ L_inv.T, self.mean(failed)[:, None]
            expected = np.maximum(mean + A @ b, np.where(hopeless, best + 0.25, -np.inf).reshape(-1, 1))
            X, y = np.concatenate([X, failed]), np.concatenate([y, expected - mean])
            L_inv = append_rows(L_inv, A, self.kernel(theta, failed, failed) - A @ A.T + noise * np.eye(len(A)))
            b = L_inv @ y
        if len(pending):
            A = self.kernel(theta, pending, X) @ L_inv.T
            C = self.kernel(theta, pending, pending) - A @ A.T
            samples = A @ b + robust_cholesky(C) @ rng.normal(size=(len(C), n_fantasies))
            X, y = np.concatenate([X, pending]), np.concatenate([np.repeat(y, n_fantasies, axis=1), samples])
            # exact samples, as if they were noisy: without the noise no difference could be measured (experiments/LOG.md)
            L_inv = append_rows(L_inv, A, C + noise * np.eye(len(C)))
            b, best = L_inv @ y, np.minimum(best, (self.mean(pending)[:, None] + samples).min(axis=0))
        return Posterior(self, theta, X, L_inv, b, best)


@dataclass(frozen=True)
class Posterior:
    """What a Gaussian process knows after (X, y), once for each of f fantasies: predictions for new rows."""

    process: GaussianProcess
    theta: np.ndarray
    X: np.ndarray  # (n, d), failed and pending rows last
    L_inv: np.ndarray  # (n, n)
    b: np.ndarray  # (n, f): L^-1 (y - mean)
    best: np.ndarray  # (f,): the loss to improve on, see `GaussianProcess.posterior`

    def predict(self, X_new):
        """mu (m, f) and sigma (m, 1) of the function without noise (R&W Alg. 2.1)."""
        process = self.process
        A = process.kernel(self.theta, X_new, self.X) @ self.L_inv.T
        prior_variance = math.exp(self.theta[-2]) + process.basis(X_new) ** 2 @ process.coefficients_sd**2
        variance = prior_variance - np.einsum("ij,ij->i", A, A)
        return process.mean(X_new)[:, None] + A @ self.b, np.sqrt(np.maximum(variance, 1e-12))[:, None]


# ---- Acquisition ----------------------------------------------------------------------------------------------------
# Chebyshev-like fit of log h(-|z|) + z^2/2 + ln sqrt(2 pi) - 2 ln u in v = 2u - 1, u = 1/(1 + |z|/4); error < 1e-8
LOG_H = (
    -1.5438286747, 1.4598699683, 0.19686027387, -0.081407832717, -0.050366902407, 0.008577211721, 0.014443227155,
    -0.00071344640938, -0.0043939356362, -6.1774183083e-05, 0.0011735718065, 3.0243239211e-05, -0.00018192123566,
)  # fmt: skip


def log_h(z):
    """ln(phi(z) + z Phi(z)), exact far into both tails; h(z) = z + h(-z) serves the right one."""
    z = np.asarray(z, float)
    u = 1 / (1 + np.abs(z) / 4)
    left = -z * z / 2 - 0.9189385332046727 + 2 * np.log(u) + np.polynomial.polynomial.polyval(2 * u - 1, LOG_H)
    return np.where(z > 0, np.log(np.where(z > 0, z + np.exp(left), 1.0)), left)


def log_augmented_improvement(mu, sigma, best, noise):
    """ln of E[max(best - f, 0)], f ~ N(mu, sigma^2), times 1 - noise / sqrt(noise^2 + sigma^2).

    Ament et al. 2023 (2310.20708) on why the logarithm. noise: the standard deviation of an observation of f. The factor
    is of Huang et al. 2006 (J. Global Optimization 34): where f is known better than one observation can tell, another
    says little; without it noise, which keeps sigma up, keeps the search at the incumbent.
    """
    both = np.hypot(noise, sigma)
    return 3 * np.log(sigma) + log_h((best - mu) / sigma) - np.log(both) - np.log(both + noise)


# ---- Bayesian optimisation ------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Settings:
    """The searcher's numbers; experiments/LOG.md has what decided them."""

    n_initial: int = 5  # trials before the model: the start configuration and a space-filling design
    category_period: int = 4  # of so many suggestions one may go to the category tried least
    cost_power: float = 1.0  # expected improvement / (seconds per epoch)^cost_power; 0 ignores time
    least: float = 0.01  # deviations of the losses by which suggestions are to improve, see `GPSearch.model`
    n_fantasies: int = 4  # joint samples at the pending configurations, over which the acquisition is averaged
    n_random: int = 1000  # candidates from all of the space
    n_rounds: int = 4  # of ever smaller mutations of the best candidates
    n_fit: int = 100  # rows, one for each rung of a trial, to which theta is fitted
    n_rows: int = 500  # rows in the posterior: O(n^3)
    n_listed: int = 2000  # a finite space of at most so many configurations is searched whole

    def __post_init__(self):
        for name, value in vars(self).items():
            kind, lowest = (numbers.Real, 0) if name in ("cost_power", "least") else (numbers.Integral, 1)
            if not isinstance(value, kind) or not lowest <= value < math.inf:
                expected = "a number" if kind is numbers.Real else "an integer"
                raise ValueError(f"Settings.{name}: expected {expected}, at least {lowest}, got {value!r}")


@dataclass(frozen=True)
class Model:
    """Losses, failures and costs as functions of the encoded configuration; experiments/explain.py prints it.

    losses: Posterior of y, where loss = centre + unit y for (centre, unit) = `units`, but for high ones (`squash`).
    failures: Posterior of -1 where a trial failed (see `GPSearch.sound`) and +1 where it did not; None without failures.
    costs: coefficients of ln(seconds per epoch) in `cost_features`; None where `GPSearch.costs` says so.
    """

    losses: Posterior
    failures: Posterior | None
    costs: np.ndarray | None
    units: tuple
    least: float  # the smallest improvement on `losses.best` that counts


class GPSearch:
    """Gaussian-process optimisation: after a Latin hypercube, the maximum of log expected improvement, augmented.

    Failures have a process of their own (Gelbart et al. 2014, 1403.5607, weigh improvement by feasibility likewise): as
    the worst of losses they would be a cliff that no lengthscale fits, often close to the optimum. Where the time of an epoch
    is known, improvement counts per second (Snoek et al. 2012, 1206.2944, section 3.2), as a run's budget is time.

    acquisition: the logarithm of something to be averaged over the fantasies, multiplied by the probability of no failure
        and divided by the seconds of an epoch; the highest is suggested. For a bound, which is none, set cost_power to 0.
    """

    correlation = staticmethod(matern52)
    acquisition = staticmethod(log_augmented_improvement)
    prior = Prior()
    settings = Settings()

    def __init__(self, space, seed=0, max_epochs=None):
        check_arguments(space, seed, max_epochs)
        self.check_parts()
        self.space, self.seed = space, seed
        self.rungs = [3**k for k in range(40) if max_epochs and 3**k < max_epochs] + [max_epochs]
        parts = list(domains(space).values())
        self.groups = np.repeat(np.arange(len(parts)), [domain.n_dims for domain in parts])
        # two categories differ in two columns: at this scale they are as far apart as the ends of a range
        self.scale = np.array([math.sqrt(0.5) if isinstance(parts[i], Choice) else 1.0 for i in self.groups])
        self.memory = {}  # trial id -> what `recall` returns

    def check_parts(self):
        """ValueError names what a subclass has replaced by something of another kind or shape."""
        name, a = type(self).__name__, np.ones((3, 2))
        for part, kind in (("prior", Prior), ("settings", Settings)):
            if not isinstance(got := getattr(self, part), kind):
                raise ValueError(f"{name}.{part}: expected {kind.__name__}(...), got {got!r}")
        for part, arguments, expected in (
            ("correlation", (a, np.exp(-a)), [(2, 3, 2)]),
            ("acquisition", (a, a[:, :1], a[0], 0.1), [(3, 2), (3, 1)]),
        ):
            shapes = " or ".join(map(str, expected))
            try:
                got = np.shape(getattr(self, part)(*arguments))
            except (TypeError, ValueError) as error:
                got = f"{type(error).__name__}: {error} (staticmethod forgotten?)"
            if got not in expected:
                given = ", ".join(str(np.shape(argument)) for argument in arguments)
                raise ValueError(f"{name}.{part}: expected shape {shapes} from arguments of shapes {given}, got {got}")

    def suggest(self, trials):
        if len({trial.id for trial in trials}) < len(trials):
            raise ValueError("trials: expected each with an id of its own, got one twice")
        seen = {self.recall(trial)[1] for trial in trials}
        if len(seen) >= n_configs(self.space):
            return None
        rng = np.random.default_rng([self.seed, len(trials)])
        model = self.model(trials, rng)
        candidates = [self.initial_point(len(trials))] if model is None else self.candidates(model, trials, rng)
        for x in candidates:
            config = decode(self.space, x)
            if config_key(without_constants(self.space, config)) not in seen:
                return config, "initial" if model is None else "model"
        if model is not None:
            logger.warning("trial %d is drawn at random: all %d candidates are taken", len(trials), len(candidates))
        return RandomSearch(self.space, self.seed).suggest(trials)

    def initial_point(self, i):
        """Point i (d,) of Latin hypercubes (McKay, Beckman and Conover 1979) of n_initial points, the first in the middle.

        The start configuration takes the place of the first. Every point has a part of its own of each range, and a
        choice repeats a value only when all have been used.
        """
        n, columns = self.settings.n_initial, []
        rng = np.random.default_rng([self.seed, i // n, 1])
        for domain in domains(self.space).values():
            parts, middle = (domain.n_dims, 0) if isinstance(domain, Choice) else (n, n // 2)
            order = np.append(middle, rng.permutation(np.delete(np.arange(parts), middle)))
            part, place = order[i % n % parts], rng.random(n)[i % n]
            columns += list(np.arange(parts) == part) if isinstance(domain, Choice) else [(part + place) / n]
        return np.array(columns, float)

    def model(self, trials, rng):
        """What the trials say; None while they are too few, or fewer than two of them have a loss."""
        settings, last = self.settings, self.rungs[-1]
        # a trial cut off before its first report is neither a success nor a failure
        ended = [t for t in trials if t.status != "running"]
        ended = [t for t in ended if t.curve or (t.error != "deadline" and t.status != "interrupted")]
        running = [trial for trial in trials if trial.status == "running"]
        sound = self.sound(trials)
        observed = [trial for trial in sound if trial.status != "running"]
        if len(trials) < settings.n_initial or len(observed) < 2:
            return None
        if (last or 1) > 1 and any(trial.status != "done" and trial.n_epochs < last for trial in observed):
            # a stopped trial's value is not final: the epoch is an input, with a row for each rung that a trial has
            # come to, and predictions are for the last (as in MOBSTER, Klein et al. 2020, 2003.10865)
            observed = sound
            curves = [losses_at(self.rungs, trial) for trial in observed]
            progress = np.log(self.rungs) / math.log(last)
        else:
            curves, progress = [[trial.value] for trial in observed], None
        trial_of = np.repeat(np.arange(len(curves)), [len(curve) for curve in curves])
        rung_of = np.concatenate([np.arange(len(curve)) for curve in curves])
        y, units = standardise(np.concatenate(curves).astype(float), trial_of, rung_of, self.places(observed))

        def inputs(trials, rungs):
            X = self.encode(trials) * self.scale
            return X if progress is None else np.column_stack([X, progress[rungs]])

        kept = best_and_random(y, settings.n_rows, rng)
        rows, y = [observed[i] for i in trial_of[kept]], y[kept]
        is_sound = {trial.id for trial in sound}
        failed = [trial for trial in ended if trial.id not in is_sound]
        failures, failed = self.failures(ended, failed, rng), failed[-settings.n_fit :]
        some = rows, running, failed
        incumbents, pending, lost = (inputs(trials, np.full(len(trials), -1)) for trials in some)
        hopeless = self.predict(failures, self.encode(failed))[0][:, 0] < -0.5 if failed else ()
        arguments = incumbents, pending, settings.n_fantasies, rng, lost, hopeless
        losses = self.learn(inputs(rows, rung_of[kept]), y, self.prior, rng, *arguments)
        # without noise ever smaller, certain improvements in one basin would be worth more than any other basin; but where
        # there is no other they are all that is left, so a fourth of the suggestions may go to what noise does not hide
        may_polish = len(trials) % 4 == 0 and math.exp(losses.theta[-1] / 2) < settings.least
        least = 0.0 if may_polish else settings.least
        return Model(losses, failures, self.costs(ended, running), units, least)

    def failures(self, ended, failed, rng):
        """Posterior of -1 where an ended trial failed, +1 where it is sound; None when all are."""
        if not failed:
            return None
        has_failed = {trial.id for trial in failed}
        y = np.array([-1.0 if trial.id in has_failed else 1.0 for trial in ended])
        kept = best_and_random(y, self.settings.n_rows, rng)  # failures first: they may be few
        X = self.encode([ended[i] for i in kept]) * self.scale
        return self.learn(X, y[kept], replace(self.prior, bowl=(0.0, 0.0)), rng, X)

    def learn(self, X, y, prior, rng, *arguments):
        """The posterior of all rows, theta from n_fit of them; arguments: those of `GaussianProcess.posterior`."""
        fit = best_and_random(y, self.settings.n_fit, rng)
        theta = self.process(X[fit], y[fit], prior).fit()
        return self.process(X, y, prior).posterior(theta, *arguments)

    def costs(self, ended, running):
        """Coefficients of ln(seconds per epoch) from the last trials; None before three of them, and where no trial runs.

        So a run with one worker can be repeated, whatever the machine does; with several the order in which they end is
        another every time. Ridge regression: as factors multiply, their logarithms add up, and it predicts trials held
        out as well as a Gaussian process, which doubled the time of a suggestion (experiments/LOG.md).
        """
        timed = [trial for trial in ended if trial.n_epochs > 0 and trial.ended and trial.ended > trial.started]
        timed = timed[-self.settings.n_fit :]
        if self.rungs[-1] is None or not self.settings.cost_power or not running or len(timed) < 3:
            return None
        F = cost_features(self.encode(timed))
        y = np.log([(trial.ended - trial.started) / trial.n_epochs for trial in timed])
        penalty = 0.05 * (np.arange(F.shape[1]) > 0)  # none of the mean
        return np.linalg.solve(F.T @ F + np.diag(penalty), F.T @ y)

    def recommend(self, trials):
        """(trial, epoch, mu, sigma): the trial with the lowest posterior mean of the loss; or None.

        The lowest of many noisy values is lucky; the posterior mean is what training it again as far would give. Only
        trials at the highest rung that any has come to are compared: how others would go on would be a guess. None while
        there is no model, or the lowest value is of another: a quick trial may be alone at the highest rung, and poor.
        """
        model = self.model(trials, np.random.default_rng([self.seed, len(trials)]))
        if model is None:
            return None
        observed = [trial for trial in self.sound(trials) if trial.status != "running"]
        n_rungs = [len(losses_at(self.rungs, t)) if self.rungs[-1] else t.status == "done" for t in observed]
        lowest = min(observed, key=lambda trial: trial.value)
        observed = [trial for trial, n in zip(observed, n_rungs) if n == max(n_rungs)]
        if all(trial.value > lowest.value for trial in observed):
            return None
        epoch = self.rungs[max(n_rungs) - 1]
        mu, sigma = self.predict(model.losses, self.encode(observed), epoch)
        i, (centre, unit) = mu.mean(axis=1).argmin(), model.units
        return observed[i], epoch, float(centre + unit * mu[i].mean()), float(unit * np.hypot(sigma[i, 0], mu[i].std()))

    def sound(self, trials):
        """The trials whose losses the model learns from; those that have ended and are not among them count as failed."""
        for trial in trials:
            try:
                is_finite = trial.value is None or math.isfinite(trial.curve[0][1]) and math.isfinite(trial.value)
            except (TypeError, ValueError, OverflowError):  # no curve, no number, or 10**400
                is_finite = False
            if not is_finite:
                expected = "a curve [(epoch, loss)] of finite losses, or the status 'failed'"
                raise ValueError(f"trial {trial.id}: expected {expected}, got {trial.curve!r:.200}")
        valued = [trial for trial in trials if trial.value is not None]
        return [trial for trial, is_sound in zip(valued, in_proportion(valued, self.places(valued))) if is_sound]

    def process(self, X, y, prior):
        with_epoch = X.shape[1] > len(self.groups)
        groups = np.append(self.groups, self.groups[-1] + 1) if with_epoch else self.groups
        return GaussianProcess(X, y, groups, prior, self.correlation, with_epoch)

    def encode(self, trials):
        """(n, d): the configurations of trials, in [0, 1]."""
        return np.array([self.recall(trial)[2] for trial in trials]).reshape(-1, len(self.scale))

    def recall(self, trial):
        """(configuration, its key, its encoding (d,) in [0, 1]) of a trial, worked out once."""
        if trial.id not in self.memory or self.memory[trial.id][0] != trial.config:
            config = hyperparameters(self.space, trial)
            self.memory[trial.id] = dict(trial.config), config_key(config), encode(self.space, config)
        return self.memory[trial.id]

    def places(self, trials):
        """(n, d): the configurations of trials, such that squared distances are means over the hyperparameters."""
        return self.encode(trials) * self.scale / math.sqrt(self.groups[-1] + 1)

    def at_epoch(self, posterior, X, epoch=None):
        """Rows X (m, d) at the kernel's scale as inputs of a posterior, which may have the epoch (None: the last) too."""
        if posterior.X.shape[1] == X.shape[1]:
            return X
        return np.column_stack([X, np.full(len(X), math.log(epoch or self.rungs[-1]) / math.log(self.rungs[-1]))])

    def predict(self, posterior, X, epoch=None):
        """mu (m, f), sigma (m, 1) at the points X (m, d) in [0, 1] and an epoch, by default the last."""
        return posterior.predict(self.at_epoch(posterior, X * self.scale, epoch))

    def score(self, model, X):
        """ln of expected improvement times the probability of no failure, per second, (m,) at the points X (m, d) in [0, 1]."""
        mu, sigma = self.predict(model.losses, X)
        has_epoch = model.losses.X.shape[1] > len(self.scale)  # there, minutes count, and augmented it was slower
        noise = 0.0 if has_epoch else math.exp(model.losses.theta[-1] / 2)
        scores = self.acquisition(mu, sigma, model.losses.best - model.least, noise)
        scores = np.logaddexp.reduce(scores, axis=1) - math.log(mu.shape[1])
        if model.failures:
            mu, sigma = self.predict(model.failures, X)
            z = (mu / np.sqrt(sigma**2 + math.exp(model.failures.theta[-1])))[:, 0]
            scores = scores - np.logaddexp(0, -1.702 * z)  # ln Phi(z) by the logistic function, within 0.01 of Phi
        if model.costs is not None:
            scores = scores - self.settings.cost_power * cost_features(X) @ model.costs
        if np.isnan(scores).any():
            raise ValueError(
                "scores: expected numbers, got NaN; from an acquisition, a correlation or a loss of its own?"
            )
        return scores

    def candidates(self, model, trials, rng):
        """Points (m, d) of the space, those with the highest score first, those that trials have taken last."""
        finite = n_configs(self.space) < math.inf  # else no point comes twice
        taken = {row.tobytes() for row in np.round(self.encode(trials), 9)} if finite else set()

        column = self.category_in_turn(trials)
        if column is not None:
            model = self.with_incumbent_of(column, model)

        def score(X):
            scores = self.score(model, X)
            if taken:
                scores[[row.tobytes() in taken for row in np.round(X, 9)]] = -np.inf
            return scores if column is None else np.where(X[:, column] > 0.5, scores, scores - 1e6)

        if n_configs(self.space) <= self.settings.n_listed:
            X = all_points(self.space)
            return X[np.argsort(-score(X), kind="stable")]
        rows = model.losses.process
        best = rows.X[np.argsort(rows.y, kind="stable"), : len(self.scale)] / self.scale
        if column is not None and (best[:, column] > 0.5).any():
            best = best[best[:, column] > 0.5]
        best = np.array(list({row.tobytes(): row for row in best}.values()))[:5]  # of different trials
        X = snap(self.space, rng.random((self.settings.n_random, len(self.scale))))
        X = np.concatenate([X, self.mutate(np.repeat(best, 50, axis=0), 0.1, rng)])
        scores = score(X)
        for i in range(self.settings.n_rounds):
            top = np.argsort(-scores, kind="stable")[:40]
            new = self.mutate(np.repeat(X[top], 6, axis=0), 0.1 * 0.35**i, rng)
            X, scores = np.concatenate([X[top], new]), np.concatenate([scores[top], score(new)])
        return X[np.argsort(-scores, kind="stable")]

    def category_in_turn(self, trials):
        """The column of the category that trials have had least often, when it is its turn; else None.

        A category that is good at once draws all trials. What they find there, such as that a hyperparameter is of no
        consequence, the model then believes of the other categories too, after a few poor trials of each.
        """
        columns = np.flatnonzero(self.scale < 1)
        if not len(columns) or (len(trials) + 1) % self.settings.category_period:
            return None
        chosen = self.encode(trials)[:, columns] > 0
        failed = np.array([trial.status == "failed" for trial in trials])
        n = chosen.sum(axis=0) + 3 * chosen[failed].sum(axis=0)  # a failure says more
        share = np.bincount(self.groups)[self.groups[columns]]  # of a choice of k values each should have 1/k
        i = (share * n).argmin()
        return columns[i] if n[i] <= 3 * math.sqrt(len(trials)) else None  # else it has been tried well enough

    def with_incumbent_of(self, column, model):
        """The model with the best of a category's own trials as what is to be improved on, where it has any."""
        X = model.losses.X[:, : len(self.scale)] / self.scale
        own = X[X[:, column] > 0.5]
        best = self.predict(model.losses, own)[0].min(axis=0) if len(own) else model.losses.best
        return replace(model, losses=replace(model.losses, best=best))

    def mutate(self, X, size, rng):
        """Each row (m, d) with some of its hyperparameters moved by about `size`, choices drawn anew."""
        p = self.groups[-1] + 1
        change = rng.random((len(X), p)) < max(0.3, 1.5 / p)
        change[np.arange(len(X)), rng.integers(p, size=len(X))] = True
        moved = np.where(self.scale < 1, rng.random(X.shape), X + size * rng.normal(size=X.shape))
        return snap(self.space, np.where(change[:, self.groups], np.clip(moved, 0, 1), X))


def cost_features(X):
    """(m, 1 + 2 d): one, and each column of X (m, d) in [0, 1] and its square, from the middle."""
    return np.hstack([np.ones((len(X), 1)), X - 0.5, (X - 0.5) ** 2])


def all_points(space):
    """Encodings (n_configs, d) of all configurations of a finite space."""
    parts = [np.array([domain.encode(value) for value in domain.values]) for domain in domains(space).values()]
    indices = np.indices([len(part) for part in parts]).reshape(len(parts), -1)
    return np.hstack([part[i] for part, i in zip(parts, indices)])


def in_proportion(trials, X, factor=20, n_first=20):
    """Which (n,) of the trials, at X (n, d), are no outliers, mostly diverged trials, which count as failed.

    A diverged trial may report any number far above all others: it would set the scale of the losses, and its randomness
    pass for their noise. An outlier's loss is above high + factor (high - low); low and high are the minimum and the 0.4
    quantile of the first reports, as a stopped trial may have no more, of the first n_first trials. These are weighted by
    1 / crowding, and later ones left out, as trials that crowd at the optimum would make all others outliers.
    """
    values = np.array([[trial.value, trial.curve[0][1]] for trial in trials], float)
    if len(values) < 8:  # a few may be close by chance
        return np.ones(len(values), bool)
    values = values / (np.abs(values).max() or 1.0)  # differences of 1e308 would overflow
    values, first = values[:, 0], values[:n_first, 1]
    low, high = first.min(), weighted_quantile(first, 1 / crowding(X[:n_first]), 0.4)
    return (values - high <= factor * (high - low)) | (high == low)


def losses_at(rungs, trial):
    """The lowest losses of a trial up to each of the epochs `rungs` that it has come to; all of them when it is done."""
    best, losses = math.inf, []
    for epoch, loss in trial.curve:
        best = min(best, loss)
        # the first report is of the first rung, whatever its epoch: some count from 0
        while len(losses) < len(rungs) and (not losses or epoch >= rungs[len(losses)]):
            losses.append(best)
    return losses + [best] * (len(rungs) - len(losses)) if trial.status == "done" else losses


def standardise(losses, trial_of, rung_of, X):
    """y (n,) in units of how losses vary over the space, and (centre, unit): loss = centre + unit y at the last rung.

    trial_of, rung_of (n,): the trial and the rung of each loss; X (trials, d): their places. Of the first rung the
    mean is 0 and the variance 1, with less weight for trials that crowd: else the unit would shrink as trials come to
    the optimum, and what has not been tried could not be much better than they are. Each later rung is mapped such that
    the trials that have come to it keep their median and spread: what all learning curves have in common is gone, and
    what tells good trials apart keeps its size. High losses are squashed: how bad a bad trial is matters little.
    """
    size = np.abs(losses).max() or 1.0  # squares of 1e300 would overflow
    y, before, target = losses / size, np.zeros(len(X)), 0.0
    for rung in range(rung_of.max() + 1):
        here = rung_of == rung
        trials = trial_of[here]
        if rung == 0:
            centre, unit = mean_and_deviation(y[here], 1 / crowding(X[trials]))
        else:
            centre, target = np.median(y[here]), np.median(before[trials])
            # the first to learn at all may be far off in the units of those that do not: so much, and no more
            unit = max(unit, np.abs(y[here] - centre).max() / 2)
            if len(trials) >= 5 and spread(y[here]) and spread(before[trials]):
                unit = min(unit, spread(y[here]) / spread(before[trials]))
        y[here] = before[trials] = squash(target + (y[here] - centre) / unit, 2)
    return y, (size * (centre - unit * target), size * unit)


def crowding(X, width=0.15, n_others=500):
    """(n,) mean over the rows of X (n, d), as of `GPSearch.places`, of a Gaussian of the distance to each row.

    Of the rows at most about n_others are looked at.
    """
    others = X[:: 1 + len(X) // n_others]
    weights = np.exp(-((distances(X, others) / width) ** 2) / 2)
    return np.maximum(weights.mean(axis=1), 1 / len(others))  # as of itself alone


def mean_and_deviation(y, weights):
    """Weighted mean and standard deviation of y (n,), high values squashed; the deviation 1 where it would be 0."""
    weights, median = weights / weights.sum(), weighted_quantile(y, weights, 0.5)
    unit = max((median - weighted_quantile(y, weights, 0.16)) or y.std() or 1.0, 1e-300)  # others may be 1e300 times
    z = squash((y - median) / unit, 3)
    mean = weights @ z
    return median + unit * mean, unit * math.sqrt(weights @ (z - mean) ** 2) or 1.0


def weighted_quantile(y, weights, q):
    """The lowest of y (n,) with a share q of the weights on it and below."""
    order = np.argsort(y, kind="stable")
    return y[order][np.searchsorted(np.cumsum(weights[order]), (q - 1e-9) * weights.sum())]


def squash(y, limit):
    """y up to the limit, from there on its logarithm, and all the same beyond limit + 50, and below -1000."""
    return np.where(y > limit, limit + np.log1p(np.clip(y - limit, 0, 50)), np.maximum(y, -1000.0))


def spread(y):
    """Half-width of the better half of y: a standard deviation if it is normal, whatever the worse half is like.

    But not where that half all but ties, as at an accuracy of 1, and the rest does not.
    """
    low, middle, high = np.quantile(y, (0.16, 0.5, 0.84))
    return max(middle - low, 0.05 * (high - low)) or y.std()


def best_and_random(y, n, rng):
    """Indices of at most n rows: the better half of them the lowest y, the others drawn from the rest."""
    order = np.argsort(y, kind="stable")
    if len(y) <= n:
        return np.arange(len(y))
    return np.concatenate([order[: n // 2], rng.choice(order[n // 2 :], n - n // 2, replace=False)])


SEARCHERS = {"random": RandomSearch, "gp": GPSearch}
