"""Searchers: which configuration to try next. The file to read and to change.

A searcher is a class with two methods; `suggest` is a function of its arguments alone, so that every suggestion of a
run can be recomputed from the run's folder:

    __init__(self, space, seed=0, max_epochs=None)
    suggest(self, trials) -> (config, origin), or None when a finite space has nothing new

trials: every trial so far (`hpo.trial.Trial`), sorted by id: id, config, status, curve [(epoch, loss)], lower is better.
The next trial's id is len(trials). origin: a word for the results, such as "random" or "model".

Notation, after Rasmussen & Williams, Gaussian Processes for Machine Learning (2006), "R&W":

    X (n, d)        configurations encoded in [0, 1]^d; y (n,) their standardised losses, lower is better
    theta (p + 2,)  ln lengthscale of each of the p hyperparameters, ln signal variance, ln noise variance
    K, L, alpha     covariance of y, its Cholesky factor, K^-1 y; L_inv = L^-1
    X_new (m, d)    candidates; mu, sigma (m,) posterior mean and standard deviation there
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np

from hpo.space import (
    Choice,
    check_space,
    config_key,
    constants,
    decode,
    domains,
    encode,
    n_configs,
    n_dims,
    sample,
    snap,
)


# ---- Random search --------------------------------------------------------------------------------------------------
class RandomSearch:
    """Independent draws from the space, no configuration twice while there is another."""

    def __init__(self, space, seed=0, max_epochs=None):
        check_space(space)
        self.space, self.seed = space, seed

    def suggest(self, trials):
        rng = np.random.default_rng([self.seed, len(trials)])  # one stream for each suggestion
        if n_configs(self.space) == math.inf:
            return sample(self.space, rng), "random"  # a float twice has probability 0
        seen = {config_key(trial.config) for trial in trials}
        for _ in range(100):
            config = sample(self.space, rng)
            if config_key(config) not in seen:
                return config, "random"
        left = unseen_configs(self.space, seen)
        return (left[rng.integers(len(left))], "random") if left else None


def unseen_configs(space, seen):
    """The configurations of a finite space that are not among `seen` (a set of config_key), by listing them all."""
    names, values = zip(*((name, domain.values) for name, domain in domains(space).items()))
    order = {**space, **constants(space)}
    configs = ({**order, **dict(zip(names, combination))} for combination in itertools.product(*values))
    return [config for config in configs if config_key(config) not in seen]


# ---- Gaussian process -----------------------------------------------------------------------------------------------
def matern52(r2):
    """Matern-5/2 correlation at squared scaled distance r2 (R&W eq. 4.17)."""
    a = np.sqrt(5 * r2)
    return (1 + a + a * a / 3) * np.exp(-a)


def squared_distances(A, B):
    """(n, m) of the rows of A (n, d) and B (m, d)."""
    return np.maximum((A * A).sum(1)[:, None] + (B * B).sum(1) - 2 * A @ B.T, 0)


def robust_cholesky(K):
    """Lower Cholesky factor of K + jitter I, with the smallest jitter of 1e-10, 1e-9, ... times its scale that works."""
    jitter = 1e-10 * np.mean(np.diag(K))
    while True:
        try:
            return np.linalg.cholesky(K + jitter * np.eye(len(K)))
        except np.linalg.LinAlgError:  # rows that are nearly the same
            jitter *= 10


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


@dataclass(frozen=True)
class Prior:
    """Independent normal distributions of theta's entries: (mean, standard deviation) of each logarithm."""

    lengthscale: tuple = (math.log(0.5), 0.7)
    signal_variance: tuple = (0.0, 1.0)
    noise_variance: tuple = (math.log(0.01), 2.0)


class GaussianProcess:
    """Zero-mean process with a Matern-5/2 kernel, one lengthscale for each hyperparameter, conditioned on (X, y).

    groups (d,): the hyperparameter of each column of X, as the columns of one choice share a lengthscale.
    """

    def __init__(self, X, y, groups, prior=Prior()):
        self.X, self.y, self.groups, self.p = X, y, groups, int(groups.max()) + 1
        pairs = [prior.lengthscale] * self.p + [prior.signal_variance, prior.noise_variance]
        self.prior_mean, self.prior_sd = np.array(pairs).T

    def kernel(self, theta, A, B):
        """(n, m) prior covariance of the function at the rows of A (n, d) and B (m, d)."""
        lengthscale = np.exp(theta[: self.p])[self.groups]
        return np.exp(theta[-2]) * matern52(squared_distances(A / lengthscale, B / lengthscale))

    def log_posterior(self, theta):
        """ln p(y | X, theta) + ln p(theta) up to a constant, and its gradient (p + 2,); R&W eq. 5.8, 5.9."""
        lengthscale, signal, noise = np.exp(theta[: self.p])[self.groups], np.exp(theta[-2]), np.exp(theta[-1])
        Z = self.X / lengthscale
        a = np.sqrt(5 * squared_distances(Z, Z))
        decay = signal * np.exp(-a)
        K_f = (1 + a + a * a / 3) * decay
        L = robust_cholesky(K_f + noise * np.eye(len(Z)))
        L_inv = inverse_of_lower(L)
        alpha = L_inv.T @ (L_inv @ self.y)
        deviation = (theta - self.prior_mean) / self.prior_sd
        value = -0.5 * self.y @ alpha - np.log(np.diag(L)).sum() - 0.5 * deviation @ deviation

        Q = np.outer(alpha, alpha) - L_inv.T @ L_inv  # d value / d K = Q / 2
        W = Q * (5 / 3 * (1 + a) * decay)  # d K_ij / d ln l_k = 5/3 (1 + a) decay (Z_ik - Z_jk)^2, without n x n x d
        by_column = W.sum(1) @ (Z * Z) - np.einsum("ij,ij->j", W @ Z, Z)
        by_lengthscale = np.bincount(self.groups, by_column, self.p)
        gradient = np.array([*by_lengthscale, 0.5 * (Q * K_f).sum(), 0.5 * noise * np.trace(Q)])
        return value, gradient - deviation / self.prior_sd

    def fit(self, n_steps=30):
        """theta at the maximum of the log posterior, found by BFGS from the prior's mean (Nocedal & Wright, Alg. 6.1)."""
        theta = self.prior_mean
        value, gradient = self.log_posterior(theta)
        H = 0.1 * np.eye(len(theta))  # inverse Hessian of -value
        for _ in range(n_steps):
            step = H @ gradient
            step *= min(1.0, 1.5 / np.abs(step).max())  # within a region in which theta makes sense
            slope = gradient @ step
            if slope < 1e-4:
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
                rho = 1 / (step @ change)
                V = np.eye(len(theta)) - rho * np.outer(step, change)
                H = V @ H @ V.T + rho * np.outer(step, step)
            theta, value, gradient = theta + step, new_value, new_gradient
        return theta

    def posterior(self, theta, pending=(), rng=None):
        """Posterior given y and, at the rows of `pending`, one joint sample of the function there ("fantasies")."""
        X, y, noise = self.X, self.y, np.exp(theta[-1])
        K = self.kernel(theta, X, X) + noise * np.eye(len(X))
        L_inv = inverse_of_lower(robust_cholesky(K))
        best = (y - noise * (L_inv.T @ (L_inv @ y))).min()  # lowest posterior mean at X: K_f K^-1 y = y - noise K^-1 y
        if len(pending):
            at_pending = Posterior(self, theta, X, L_inv, L_inv @ y, best)
            A = self.kernel(theta, pending, X) @ L_inv.T
            C = self.kernel(theta, pending, pending) - A @ A.T
            fantasy = A @ at_pending.b + robust_cholesky(C + 1e-8 * np.eye(len(C))) @ rng.normal(size=len(C))
            X, y = np.concatenate([X, pending]), np.concatenate([y, fantasy])
            L_inv = append_rows(L_inv, A, C + noise * np.eye(len(C)))
            best = min(best, fantasy.min())
        return Posterior(self, theta, X, L_inv, L_inv @ y, best)


def append_rows(L_inv, A, C):
    """L^-1 of [[K, B^T], [B, D]] from that of K (n, n), A = B L^-T (m, n) and the Schur complement C = D - A A^T."""
    C_inv = inverse_of_lower(robust_cholesky(C))
    return np.block([[L_inv, np.zeros((len(L_inv), len(C)))], [-C_inv @ A @ L_inv, C_inv]])


@dataclass(frozen=True)
class Posterior:
    """What a Gaussian process knows after (X, y): predictions for new rows."""

    process: GaussianProcess
    theta: np.ndarray
    X: np.ndarray
    L_inv: np.ndarray
    b: np.ndarray  # L^-1 y
    best: float  # the incumbent: lowest posterior mean at an observed or pending configuration

    def predict(self, X_new):
        """mu, sigma (m,) of the function without noise (R&W Alg. 2.1)."""
        A = self.process.kernel(self.theta, X_new, self.X) @ self.L_inv.T
        variance = np.exp(self.theta[-2]) - np.einsum("ij,ij->i", A, A)
        return A @ self.b, np.sqrt(np.maximum(variance, 1e-12))


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


def log_expected_improvement(mu, sigma, best):
    """ln E[max(best - f, 0)], f ~ N(mu, sigma^2): Ament et al. 2023 (2310.20708) on why the logarithm."""
    return np.log(sigma) + log_h((best - mu) / sigma)


# ---- Bayesian optimisation ------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Settings:
    """The searcher's numbers; experiments/LOG.md has what decided them, or says that nothing has yet."""

    n_initial: int = 8  # configurations of a low-discrepancy design before the model
    clip: float = 3.0  # losses worse than the median by so many spreads of the better half count as that
    n_fantasies: int = 4  # joint samples at the pending configurations, over which the acquisition is averaged
    n_random: int = 1000  # candidates from all of the space
    n_rounds: int = 4  # of ever smaller mutations of the best candidates
    n_fit: int = 128  # rows that decide theta
    n_rows: int = 1000  # rows in the posterior: O(n^3)


class GPSearch:
    """Gaussian-process optimisation: after a low-discrepancy design, the maximum of log expected improvement."""

    settings = Settings()
    acquisition = staticmethod(log_expected_improvement)

    def __init__(self, space, seed=0, max_epochs=None):
        check_space(space)
        self.space, self.seed = space, seed
        parts = list(domains(space).values())
        self.groups = np.repeat(np.arange(len(parts)), [domain.n_dims for domain in parts])
        # two categories differ in two columns: at this scale they are as far apart as the ends of a range
        self.scale = np.array([math.sqrt(0.5) if isinstance(parts[i], Choice) else 1.0 for i in self.groups])

    def suggest(self, trials):
        seen = {config_key(trial.config) for trial in trials}
        if len(seen) >= n_configs(self.space):
            return None
        rng = np.random.default_rng([self.seed, len(trials)])
        candidates = self.ranked(trials, seen, rng)
        origin = "initial" if candidates is None else "model"
        if candidates is None:
            candidates = [self.initial_point(len(trials))]
        for x in candidates:
            config = decode(self.space, x)
            if config_key(config) not in seen:
                return config, origin
        fallback = RandomSearch(self.space, self.seed).suggest(trials)  # every candidate is taken
        return fallback and (fallback[0], "random")

    def initial_point(self, i):
        """Point i (d,) of an additive recurrence, the R-sequence of Roberts (2018), shifted by the seed."""
        d, phi = n_dims(self.space), 2.0
        for _ in range(60):
            phi = (1 + phi) ** (1 / (d + 1))  # the root of phi^(d+1) = phi + 1
        shift = np.random.default_rng(self.seed).random(d)
        return (shift + (i + 1) * phi ** -np.arange(1.0, d + 1)) % 1

    def ranked(self, trials, seen, rng):
        """Candidates (m, d), the best first, or None while there is too little to model."""
        model = self.model(trials, rng)
        if model is None:
            return None
        if n_configs(self.space) <= 2000:
            left = unseen_configs(self.space, seen)
            candidates = np.array([encode(self.space, config) for config in left])
            return candidates[np.argsort(-self.score(model, candidates), kind="stable")]
        best = model[0].process.X[np.argsort(model[0].process.y, kind="stable")[:5]] / self.scale
        candidates = [snap(self.space, rng.random((self.settings.n_random, len(self.scale))))]
        candidates = np.concatenate([*candidates, self.mutate(np.repeat(best, 50, 0), 0.1, rng)])
        scores = self.score(model, candidates)
        for i in range(self.settings.n_rounds):
            top = np.argsort(-scores, kind="stable")[:40]
            new = self.mutate(np.repeat(candidates[top], 6, 0), 0.1 * 0.35**i, rng)
            candidates = np.concatenate([candidates[top], new])
            scores = np.concatenate([scores[top], self.score(model, new)])
        return candidates[np.argsort(-scores, kind="stable")]

    def model(self, trials, rng):
        """Posteriors, one for each fantasy, over which the acquisition is averaged; None with fewer than two values."""
        rows = [trial for trial in trials if trial.value is not None or trial.status == "failed"]
        rows = [trial for trial in rows if trial.status != "running"]
        values = [trial.value for trial in rows if trial.value is not None]
        if len(trials) < self.settings.n_initial or len(values) < 2:
            return None
        y = standardise(np.array([max(values) if t.value is None else t.value for t in rows]), self.settings.clip)
        X = np.array([encode(self.space, trial.config) for trial in rows]) * self.scale
        running = [encode(self.space, trial.config) for trial in trials if trial.status == "running"]
        pending = np.array(running).reshape(-1, len(self.scale)) * self.scale
        fit, kept = (best_and_random(y, n, rng) for n in (self.settings.n_fit, self.settings.n_rows))
        theta = GaussianProcess(X[fit], y[fit], self.groups).fit()
        process = GaussianProcess(X[kept], y[kept], self.groups)
        n = self.settings.n_fantasies if len(pending) and len(kept) <= 300 else 1
        return [process.posterior(theta, pending, rng) for _ in range(n)]

    def score(self, model, X_new):
        """ln of the expected improvement (m,), averaged over the posteriors."""
        scores = [self.acquisition(*posterior.predict(X_new * self.scale), posterior.best) for posterior in model]
        return np.logaddexp.reduce(scores) - math.log(len(scores))

    def mutate(self, X, size, rng):
        """Each row (m, d) with some of its hyperparameters moved by about `size`, choices drawn anew."""
        p = self.groups[-1] + 1
        change = rng.random((len(X), p)) < max(0.3, 1.5 / p)
        change[np.arange(len(X)), rng.integers(p, size=len(X))] = True
        moved = np.where(self.scale < 1, rng.random(X.shape), X + size * rng.normal(size=X.shape))
        return snap(self.space, np.where(change[:, self.groups], np.clip(moved, 0, 1), X))


def standardise(y, clip):
    """Losses (n,) with mean 0 and variance 1, those far above the median clipped: a diverged trial is bad enough."""
    y = y / (np.abs(y).max() or 1.0)  # squares of 1e300 would overflow
    spread = np.median(y) - np.quantile(y, 0.16) or y.std()
    y = np.minimum(y, np.median(y) + clip * spread)
    return (y - y.mean()) / (y.std() or 1.0)


def best_and_random(y, n, rng):
    """Indices of at most n rows: the better half of them the lowest y, the others drawn from the rest."""
    order = np.argsort(y, kind="stable")
    if len(y) <= n:
        return np.arange(len(y))
    return np.concatenate([order[: n // 2], rng.choice(order[n // 2 :], n - n // 2, replace=False)])


SEARCHERS = {"random": RandomSearch, "gp": GPSearch}
