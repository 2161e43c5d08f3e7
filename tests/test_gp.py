"""GPSearch: its mathematics against oracles, and what a user relies on."""

import math
from dataclasses import replace

import numpy as np
import pytest

from experiments.simulated import simulate
from hpo.searchers import (
    GaussianProcess,
    GPSearch,
    Prior,
    RandomSearch,
    Settings,
    append_rows,
    cost_features,
    decays,
    distances,
    in_proportion,
    inverse_of_lower,
    log_augmented_improvement,
    log_h,
    losses_at,
    matern52,
    standardise,
)
from hpo.space import choice, config_key, decode, encode, lograndint, loguniform, ordinal, randint, sample, uniform
from hpo.trial import Trial

SPACE = {"x": uniform(0, 1), "lr": loguniform(1e-4, 1), "n": randint(1, 9), "kind": choice(["a", "b"]), "epochs": 3}


def process(n=25, seed=0, **options):
    rng = np.random.default_rng(seed)
    return GaussianProcess(rng.random((n, 4)), rng.normal(size=n), np.array([0, 1, 2, 2]), **options), rng


# ---- Mathematics --------------------------------------------------------------------------------------------------------
def test_matern52_matches_textbook_formula():
    for r in (0.0, 0.1, 1.0, 7.0):
        a = math.sqrt(5) * r
        k, slope = matern52(np.array([a]), np.array([math.exp(-a)]))
        assert k == pytest.approx((1 + a + 5 * r * r / 3) * math.exp(-a), rel=1e-14)
        assert slope == pytest.approx((1 + a) / 3 * math.exp(-a), rel=1e-14)  # -k'(a) / a


@pytest.mark.parametrize("scale", [1e-3, 1.0, 600.0, 5000.0])  # e^5000 would overflow
@pytest.mark.parametrize("n_columns", [1, 3])
def test_decays_match_the_exponential_of_the_distances(scale, n_columns):
    rng = np.random.default_rng(0)
    A, B = scale * rng.random((20, n_columns)), scale * rng.random((30, n_columns))
    B[:20] = A  # distance 0
    a = distances(A, B)
    expected = np.linalg.norm(A[:, None] - B, axis=2)
    assert a == pytest.approx(expected, rel=1e-9, abs=1e-6 * scale)
    assert decays(A, B, a) == pytest.approx(np.exp(-a), rel=1e-12)


def textbook_kernel(gp, theta, A, B):
    """k entry by entry, from its definition."""
    *lengthscales, additive, signal, _ = theta
    lengthscales, ridge, share = np.exp(lengthscales[: gp.p]), lengthscales[gp.p :], 1 / (1 + math.exp(-additive))
    ridge = [*ridge, 0.0][: A.shape[1]]  # the epoch has no part in it

    def m(r2):
        return (1 + math.sqrt(5 * r2) + 5 * r2 / 3) * math.exp(-math.sqrt(5 * r2))

    def k(x, z):
        squares = np.bincount(gp.groups, (x - z) ** 2) / lengthscales**2  # one for each hyperparameter
        joint = squares.sum() + ((x - z) @ ridge) ** 2
        return math.exp(signal) * ((1 - share) * m(joint) + share * np.mean([m(r2) for r2 in squares]))

    return np.array([[k(x, z) for z in B] for x in A]) + mean_variance(gp, A, B)


def textbook_bowl(gp, X):
    numeric = [i for i in range(X.shape[1]) if list(gp.groups).count(gp.groups[i]) == 1 and i < gp.d_ridge]
    return np.array([sum((2 * x[i] - 1) ** 2 for i in numeric) / math.sqrt(len(numeric)) for x in X])


def mean_variance(gp, A, B):
    return gp.prior.constant[1] ** 2 + gp.prior.bowl[1] ** 2 * textbook_bowl(gp, A)[:, None] * textbook_bowl(gp, B)


@pytest.mark.parametrize("with_epoch", [False, True])
def test_kernel_matches_its_formula(with_epoch):
    gp, rng = process(with_epoch=with_epoch)
    theta, A = gp.prior_mean + 0.5 * rng.normal(size=len(gp.prior_mean)), rng.random((9, 4))
    assert gp.kernel(theta, A, gp.X) == pytest.approx(textbook_kernel(gp, theta, A, gp.X), rel=1e-7)
    X = rng.random((3000, 4))
    assert gp.kernel(theta, X, A) == pytest.approx(gp.kernel(theta, A, X).T, rel=1e-9)  # in blocks or not


@pytest.mark.parametrize("with_epoch", [False, True])
def test_gradient_matches_finite_differences(with_epoch):
    gp, rng = process(with_epoch=with_epoch)
    theta = gp.prior_mean + 0.4 * rng.normal(size=9 if with_epoch else 10)
    _, gradient = gp.log_posterior(theta)
    steps = 1e-5 * np.eye(len(theta))
    differences = [(gp.log_posterior(theta + s)[0] - gp.log_posterior(theta - s)[0]) / 2e-5 for s in steps]
    assert gradient == pytest.approx(differences, abs=1e-6)


def test_fit_reaches_a_maximum():
    gp, rng = process(60)
    theta = gp.fit()
    value, gradient = gp.log_posterior(theta)
    assert np.linalg.norm(gradient) < 0.005 * np.linalg.norm(gp.log_posterior(gp.prior_mean)[1])
    assert all(value >= gp.log_posterior(theta + 0.1 * rng.normal(size=10))[0] - 0.01 for _ in range(20))


def test_fit_finds_a_ridge():
    """y depends on one combination of two of four columns: the fitted ridge is along it, and predicts better for it."""
    rng = np.random.default_rng(0)
    X, X_new = rng.random((40, 4)), rng.random((500, 4))

    def f(X):
        return np.sin(6 * (X[:, 0] - 0.7 * X[:, 2]))

    errors = []
    for prior in (Prior(), Prior(ridge=(0.0, 1e-6))):
        gp = GaussianProcess(X, f(X), np.arange(4), prior)
        theta = gp.fit()
        errors.append(np.abs(gp.posterior(theta, X).predict(X_new)[0][:, 0] - f(X_new)).mean())
        if prior == Prior():
            ridge = theta[4:8] / np.linalg.norm(theta[4:8])
            assert abs(ridge @ np.array([1, 0, -0.7, 0])) / math.hypot(1, 0.7) > 0.98
    assert errors[0] < 0.2 * errors[1]


def test_fit_does_not_take_waves_for_noise():
    """Ten waves without noise, rows unevenly spread: predicted, where a fit from the prior's mean alone finds noise."""
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.random((25, 1)), 0.4 + 0.1 * rng.random((10, 1))])
    gp = GaussianProcess(X, np.sin(60 * X[:, 0]), np.array([0]))
    theta = gp.fit()
    assert math.exp(theta[-1]) < 0.01 and math.exp(theta[0]) < 0.1
    assert gp.log_posterior(theta)[0] > gp.log_posterior(np.array([-1.0, 0.0, 0.0, 0.0, -0.5]))[0] + 10


@pytest.mark.parametrize("constant", [0.0, 2.0])
def test_posterior_matches_the_dense_formula(constant):
    gp, rng = process(prior=Prior(constant=(constant, 3.0), bowl=(0.7, 0.4)))
    theta, X_new = gp.prior_mean + 0.3 * rng.normal(size=10), rng.random((7, 4))
    mu, sigma = gp.posterior(theta, gp.X).predict(X_new)
    K_inv = np.linalg.inv(textbook_kernel(gp, theta, gp.X, gp.X) + math.exp(theta[-1]) * np.eye(25))
    k = textbook_kernel(gp, theta, X_new, gp.X)
    mean, mean_new = (gp.prior.constant[0] + gp.prior.bowl[0] * textbook_bowl(gp, X) for X in (gp.X, X_new))
    prior_variance = math.exp(theta[-2]) + np.diag(mean_variance(gp, X_new, X_new))
    variance = prior_variance - np.einsum("ij,jk,ik->i", k, K_inv, k)
    assert mu.shape == sigma.shape == (7, 1)
    assert mu[:, 0] == pytest.approx(mean_new + k @ K_inv @ (gp.y - mean), abs=1e-6)
    assert sigma[:, 0] ** 2 == pytest.approx(variance, abs=1e-6)


def test_incumbent_is_the_lowest_posterior_mean_at_observed_rows():
    gp, _ = process()
    posterior = gp.posterior(gp.prior_mean, gp.X)
    assert posterior.best == pytest.approx(posterior.predict(gp.X)[0].min(), abs=1e-6)


def test_failed_rows_leave_the_mean_and_are_known():
    gp, rng = process()
    failed, theta = rng.random((20, 4)), gp.prior_mean.copy()
    theta[-1] = math.log(1e-6)
    before = gp.posterior(theta, gp.X)
    failed = failed[before.predict(failed)[0][:, 0] > before.best + 0.25][:5]
    after = gp.posterior(theta, gp.X, failed=failed)
    mu, sigma = after.predict(failed)
    assert mu == pytest.approx(before.predict(failed)[0], abs=1e-4)
    assert after.predict(X := rng.random((9, 4)))[0] == pytest.approx(before.predict(X)[0], abs=1e-3)
    assert after.best == before.best and (sigma < 0.01).all() and (before.predict(failed)[1] > 0.1).all()
    twice = gp.posterior(theta, gp.X, rng.random((2, 4)), 4, rng, failed=np.concatenate([failed, failed]))
    assert twice.predict(failed)[0].std(axis=1) == pytest.approx(0, abs=0.01)  # pending rows do not change that


def test_failed_rows_promise_nothing_where_most_fail():
    gp, _ = process()
    theta, failed = gp.prior_mean.copy(), np.repeat(gp.X[[gp.y.argmin()]] + 0.001, 50, axis=0)
    theta[-1] = math.log(1e-2)
    before = gp.posterior(theta, gp.X)
    by_chance, hopeless = (
        gp.posterior(theta, gp.X, failed=failed, hopeless=np.full(50, most)) for most in (False, True)
    )
    assert before.predict(failed)[0].max() < before.best + 0.1
    assert by_chance.predict(failed)[0] == pytest.approx(before.predict(failed)[0], abs=1e-3)
    assert hopeless.predict(failed)[0].min() > before.best + 0.2
    assert before.best == by_chance.best == hopeless.best


def test_fantasies_condition_on_a_sample_at_the_pending_rows():
    gp, rng = process()
    pending, theta = rng.random((3, 4)), gp.prior_mean.copy()
    theta[-1] = math.log(1e-6)
    mu, sigma = gp.posterior(theta, gp.X).predict(pending)
    fantasies = gp.posterior(theta, gp.X, pending, 4000, rng)
    drawn, left = fantasies.predict(pending)  # (3, 4000), (3, 1)
    assert drawn.mean(1) == pytest.approx(mu[:, 0], abs=5 * sigma.max() / math.sqrt(4000))
    assert drawn.std(1) == pytest.approx(sigma[:, 0], rel=0.1)
    assert left.max() < 0.01 < sigma.min()  # little is left to learn there
    assert fantasies.best == pytest.approx(np.minimum(gp.posterior(theta, gp.X).best, drawn.min(0)), abs=0.01)


def test_mean_is_unknown():
    """Far from the data the process predicts the generalised least squares mean, not 0 and not the average of y."""
    rng = np.random.default_rng(0)
    X = np.concatenate([0.001 * rng.random((30, 2)), [[0.5, 0.5]]])  # thirty rows in one place, one elsewhere
    gp = GaussianProcess(X, np.array([5.0] * 30 + [9.0]), np.array([0, 1]), Prior(constant=(0.0, 1e3), bowl=(0.0, 0.0)))
    theta = np.array([math.log(0.05)] * 2 + [0.0, 0.0, -20.0, 0.0, math.log(0.01)])
    assert gp.posterior(theta, gp.X).predict(np.array([[0.0, 1.0]]))[0][0, 0] == pytest.approx(7.0, abs=0.05)


def test_corners_wait():
    """Losses that say nothing: with a mean that rises to them far fewer suggestions are at the ends of ranges."""
    space = {f"x{i}": uniform(0, 1) for i in range(5)} | {"kind": choice(["a", "b"])}

    def n_at_ends(bowl, seed):
        searcher, trials, rng = GPSearch(space, seed), [], np.random.default_rng(seed)
        searcher.prior = Prior(bowl=bowl)
        for i in range(16):
            trials.append(Trial(i, *searcher.suggest(trials), status="done", curve=[(1, rng.normal())]))
        values = np.array([[trial.config[f"x{i}"] for i in range(5)] for trial in trials if trial.origin == "model"])
        return (np.abs(values - 0.5) > 0.48).sum()

    with_bowl, without = (sum(n_at_ends(bowl, seed) for seed in range(5)) for bowl in (Prior().bowl, (0.0, 0.0)))
    assert with_bowl < 0.5 * without


@pytest.mark.parametrize("n", [1, 5, 97, 300])
def test_inverse_of_lower_matches_numpy(n):
    L = np.tril(np.random.default_rng(n).random((n, n))) + n * np.eye(n)
    assert inverse_of_lower(L) == pytest.approx(np.linalg.inv(L), abs=1e-12)


def test_append_rows_matches_a_refit():
    rng = np.random.default_rng(1)
    M = rng.random((12, 12))
    K = M @ M.T + np.eye(12)
    L_inv = inverse_of_lower(np.linalg.cholesky(K[:8, :8]))
    A = K[8:, :8] @ L_inv.T
    assert append_rows(L_inv, A, K[8:, 8:] - A @ A.T) == pytest.approx(np.linalg.inv(np.linalg.cholesky(K)), abs=1e-8)


def test_log_h_matches_high_precision_values():
    """ln(phi(z) + z Phi(z)) by mpmath with 80 digits."""
    frozen = {-1000: -500014.73445209116, -300: -45012.32653681455, -50: -1258.744182868461, -10: -55.55312203612235}
    frozen |= {-3: -7.869686059603029, -1: -2.4851210257126413, -0.1: -1.047153314072846, 0: -0.9189385332046728}
    frozen |= {0.1: -0.7964313395507471, 1: 0.08002621884930694, 3: 1.0987396653277077, 30: 3.4011973816621555}
    for z, expected in frozen.items():
        assert log_h(z) == pytest.approx(expected, abs=2e-8)


def test_augmented_improvement_matches_its_formula():
    mu, sigma, best = np.array([[0.3, -1.0], [2.0, 0.5]]), np.array([[0.7], [1e-3]]), np.array([0.1, 0.6])
    z = (best - mu) / sigma
    Phi, phi = 0.5 * (1 + np.vectorize(math.erf)(z / math.sqrt(2))), np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    improvement = (best - mu) * Phi + sigma * phi
    seen = improvement > 1e-12  # else the oracle has cancelled
    assert seen.sum() == 3
    for noise in (0.0, 0.2, 5.0):
        expected = improvement * (1 - noise / np.sqrt(noise**2 + sigma**2))
        assert np.exp(log_augmented_improvement(mu, sigma, best, noise))[seen] == pytest.approx(
            expected[seen], rel=1e-6
        )
    assert np.isfinite(log_augmented_improvement(mu, 1e-9, best, 30.0)).all()


# ---- Behaviour ----------------------------------------------------------------------------------------------------------
def run(searcher, objective, n, workers=1):
    """Trials of an asynchronous run in which the oldest running trial ends whenever a worker is needed."""
    trials = []
    for i in range(n):
        running = [trial for trial in trials if trial.status == "running"]
        if len(running) == workers:
            loss = objective(running[0].config)
            running[0].status = "done" if math.isfinite(loss) else "failed"
            running[0].curve = [(1, loss)] if math.isfinite(loss) else []
        suggestion = searcher.suggest(trials)
        if suggestion is None:
            break
        trials.append(Trial(i, *suggestion))
    return trials


def bowl(config):
    return (
        (config["x"] - 0.7) ** 2
        + (math.log10(config["lr"]) + 2) ** 2 / 4
        + (config["n"] - 4) ** 2 / 20
        + (config["kind"] == "a")
    )


def test_suggestion_depends_on_its_arguments_alone():
    trials = run(GPSearch(SPACE, 3), bowl, 20, workers=4)
    np.random.seed(1)
    first = GPSearch(SPACE, 3).suggest(trials)
    np.random.seed(2)
    assert first == GPSearch(SPACE, 3).suggest(trials) and first[1] == "model"
    assert first[0] != GPSearch(SPACE, 4).suggest(trials)[0]
    assert [GPSearch(SPACE, 3).suggest(trials[:i])[0] for i in range(4)] == [trial.config for trial in trials[:4]]


def test_beats_random_search_by_a_margin_and_random_search_does_not():
    def mean_best(searcher, seeds):
        runs = [run(searcher(SPACE, seed), bowl, 30, workers=4) for seed in seeds]
        return np.mean([min(trial.value for trial in trials if trial.value is not None) for trials in runs])

    limit = 0.3 * mean_best(RandomSearch, range(4))
    assert mean_best(GPSearch, range(4)) < limit
    assert not mean_best(RandomSearch, range(4, 8)) < limit


def test_a_category_that_is_good_at_once_is_no_trap():
    """One kernel is fair whatever else; the other, with two hyperparameters of its own, better in a fifth of its space."""
    space = {"kernel": choice(["linear", "rbf"]), **{name: uniform(0, 1) for name in ("C", "gamma", "tol")}}

    def objective(config):
        if config["kernel"] == "linear":
            return 0.3 + 0.01 * (config["C"] - 0.5) ** 2
        return 1 - 0.95 * math.exp(-((config["C"] - 0.8) ** 2 + (config["gamma"] - 0.2) ** 2) / 0.3)

    for seed in (3, 4):
        trials = run(GPSearch(space, seed), objective, 40, workers=4)
        assert min(trial.value for trial in trials if trial.value is not None) < 0.06


def test_every_fourth_suggestion_is_of_the_category_tried_least():
    space = {"x": uniform(0, 1), "kind": choice(["a", "b", "c"]), "flag": choice([True, False])}
    trials = run(GPSearch(space), lambda config: config["x"] + (config["kind"] != "a") + config["flag"], 40)
    for i in range(7, 40, 4):
        # of k values each should have 1/k
        counts = {v: 3 * sum(t.config["kind"] == v for t in trials[:i]) for v in "abc"}
        counts |= {v: 2 * sum(t.config["flag"] is v for t in trials[:i]) for v in (True, False)}
        least = {value for value, n in counts.items() if n == min(counts.values())}
        assert least & {trials[i].config["kind"], trials[i].config["flag"]}
    n_best = sum(trial.config["kind"] == "a" and not trial.config["flag"] for trial in trials)
    assert n_best >= 20  # the other suggestions go on where it is good


def test_a_category_that_only_fails_is_soon_left_alone():
    space = {"x": uniform(0, 1), "y": uniform(0, 1), "kind": choice(["works", "broken"])}

    def objective(config, rng):
        loss = (config["x"] - 0.3) ** 2 + (config["y"] - 0.6) ** 2
        yield rng.lognormal(0, 0.5), {"loss": math.nan if config["kind"] == "broken" else loss}

    trials = simulate(GPSearch(space), space, objective, n_workers=4, n_trials=60)
    assert 2 <= sum(trial.config["kind"] == "broken" for trial in trials) <= 15  # random search: 30


@pytest.mark.parametrize("bad", [math.nan, 1e12])
def test_a_region_that_fails_is_not_tried_again_and_again(bad):
    """A third of the space fails, next to the optimum: as nothing else is unknown, it once got half of the trials."""
    space = {"lr": loguniform(1e-6, 10), "momentum": uniform(0, 0.99), "x": uniform(0, 1)}

    def excess(config):
        return math.log10(config["lr"]) + 1 - 0.5 * config["momentum"]

    def objective(config, rng):
        loss = (excess(config) + 0.2) ** 2 + (config["momentum"] - 0.9) ** 2 + 0.1 * config["x"]
        yield 1.0, {"loss": bad if excess(config) > 0 else loss + 0.01 * rng.normal()}

    trials = simulate(GPSearch(space), space, objective, n_workers=1, n_trials=60)
    failed = [excess(trial.config) > 0 for trial in trials]
    assert sum(failed[:20]) >= 1 and sum(failed[20:]) <= 8
    assert min(trial.value for trial, has_failed in zip(trials, failed) if not has_failed) < 0.03


def test_a_region_that_fails_where_losses_fall_is_left():
    """Half of the square fails, and the losses fall towards it: once 29 of the last 30 trials were there."""
    space = {"x": uniform(0, 1), "y": uniform(0, 1)}

    def objective(config, rng):
        loss = (config["x"] - 0.3) ** 2 + (config["y"] - 0.4) ** 2
        yield 1.0, {"loss": math.nan if config["x"] < 0.5 else loss}

    trials = simulate(GPSearch(space), space, objective, n_workers=2, n_trials=50)
    assert sum(trial.status == "failed" for trial in trials[30:]) <= 14
    assert min(trial.value for trial in trials if trial.value is not None) < 0.06  # 0.04 at the boundary


def test_a_basin_that_is_known_is_left_and_polished_in_turn():
    """The bottom of a basin to a millionth every fourth time, else where a twentieth of a deviation can be won."""
    space, rng = {"x": uniform(0, 1), "y": uniform(0, 1)}, np.random.default_rng(0)

    def loss(config):
        return (config["x"] - 0.3) ** 2 + (config["y"] - 0.6) ** 2

    trials = [Trial(i, sample(space, rng), "random", status="done") for i in range(20)]
    for trial in trials:
        trial.curve = [(1, loss(trial.config))]
    searcher = GPSearch(space)
    for i in range(20, 36):
        config, origin = searcher.suggest(trials)
        trials.append(Trial(i, config, origin, status="done", curve=[(1, loss(config))]))
    polished = [trial.value for trial in trials[20:] if trial.id % 4 == 0]
    others = [trial.value for trial in trials[20:] if trial.id % 4]
    assert polished[-1] < 1e-6 and np.median(others) > 1e-3, (polished, others)


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_initial_points_and_the_middle_share_out_every_range_and_choice(seed):
    space = {
        **{f"x{i}": uniform(0, 1) for i in range(12)},
        "kind": choice(["a", "b", "c"]),
        "many": choice(list(range(9))),
    }
    searcher, n = GPSearch(space, seed), 5
    for block in (0, n):
        configs = [decode(space, searcher.initial_point(i)) for i in range(block, block + n)]
        for i in range(12):
            assert sorted(int(n * config[f"x{i}"]) for config in configs) == list(range(n))
        assert configs[0]["kind"] == "a" and {config["kind"] for config in configs[:3]} == set("abc")
        assert len({config["many"] for config in configs}) == n
        assert all(abs(configs[0][f"x{i}"] - 0.5) <= 0.1 for i in range(12))


@pytest.mark.parametrize("space", [{"n": randint(1, 6), "kind": choice(["a", "b", "c"])}, {"kind": choice(["a", "b"])}])
def test_finite_space_is_tried_once_each_and_ends(space):
    trials = run(GPSearch(space), lambda config: float(sum(map(ord, config_key(config)))), 99, workers=2)
    assert len(trials) == math.prod(domain.n_values for domain in space.values())
    assert len({config_key(trial.config) for trial in trials}) == len(trials)


def test_failing_region_is_avoided():
    def objective(config):
        return math.nan if config["x"] > 0.5 else (config["x"] - 0.4) ** 2 + (config["y"] - 0.5) ** 2

    trials = run(GPSearch({"x": uniform(0, 1), "y": uniform(0, 1)}), objective, 40)
    assert sum(trial.config["x"] > 0.5 for trial in trials[20:]) <= 6  # 10 by chance


def test_a_loss_out_of_proportion_says_as_much_as_a_failure():
    """Diverged trials that report anything from 100 to 1e6: what is suggested is what would be if they had failed."""
    rng = np.random.default_rng(0)
    sound, diverged = [], []
    for i in range(24):
        config = sample(SPACE, rng)
        loss = bowl(config) if i % 3 else 10 ** rng.uniform(2, 6)
        sound.append(Trial(i, config, "random", status="done" if i % 3 else "failed", curve=[(1, bowl(config))]))
        diverged.append(Trial(i, config, "random", status="done", curve=[(1, loss)]))
    assert GPSearch(SPACE).suggest(diverged) == GPSearch(SPACE).suggest(sound)
    assert GPSearch(SPACE).recommend(diverged)[0].id % 3


def test_proportion_is_that_of_the_space_and_not_of_a_crowd():
    def kept(losses, X):
        trials = [Trial(i, {}, "random", status="done", curve=[(1, float(loss))]) for i, loss in enumerate(losses)]
        return np.flatnonzero(in_proportion(trials, X)).tolist()

    rng = np.random.default_rng(0)
    X = np.concatenate([rng.random((8, 2)), 0.5 + 0.01 * rng.random((212, 2)), rng.random((2, 2))])
    losses = np.concatenate([np.linspace(1, 2, 8), 1 + 1e-6 * np.arange(212), [3, 1e5]])
    sound = list(range(221))
    assert kept(losses, X) == sound
    assert not set(range(1, 8)) & set(kept(losses, np.zeros_like(X)))  # without the weights
    for scale, shift in ((1e-300, 0), (1e300, 0), (1, 1)):
        assert kept(scale * losses + shift, X) == sound
    assert kept(-losses, X) == list(range(222))  # nothing is out of proportion because it is good
    assert kept([], X[:0]) == [] and kept([1, 2, 1e9], X[:3]) == [0, 1, 2]
    assert kept([3] * 9 + [1e9], X[:10]) == list(range(10))


def test_a_trial_that_was_stopped_early_is_not_out_of_proportion():
    """Twelve are done, their losses a thousandth of what they were at the first epoch, at which the others were stopped."""
    curves = [[(1, 1 + i / 10), (27, (1 + i / 10) / 1000)][: 2 if i < 12 else 1] for i in range(20)]
    trials = [Trial(i, {}, "random", status="done" if i < 12 else "stopped", curve=c) for i, c in enumerate(curves)]
    assert in_proportion(trials, np.random.default_rng(0).random((20, 2))).all()


AWKWARD = {
    "all equal": [1.0] * 12,
    "two": [1.0, 2.0],
    "huge": [1e300 * (i + 1) for i in range(12)],
    "tiny": [1e-300 * i for i in range(12)],
    "outliers": [0.1 * i for i in range(10)] + [1e30, -1e30],
    "one good": [math.nan] * 11 + [1.0],
    "half failed": [math.nan if i % 2 else float(i) for i in range(20)],
}


@pytest.mark.parametrize("name", AWKWARD)
@pytest.mark.parametrize("n_pending", [0, 64])
def test_awkward_data_gives_a_suggestion(name, n_pending):
    rng = np.random.default_rng(0)
    space = {**SPACE, "steps": lograndint(1, 5), "size": ordinal([3, 1, 2])}
    trials = [
        Trial(i, sample(space, rng), "random", status="done", curve=[(1, loss)]) for i, loss in enumerate(AWKWARD[name])
    ]
    for trial in trials:
        if math.isnan(trial.curve[0][1]):
            trial.status, trial.curve = "failed", []
    trials += [Trial(len(trials) + i, sample(space, rng), "random") for i in range(n_pending)]
    config, origin = GPSearch(space).suggest(trials)
    n_losses = sum(math.isfinite(loss) for loss in AWKWARD[name])
    assert set(config) == set(space)
    assert origin == ("model" if n_losses >= 2 and len(trials) >= 5 else "initial")


def test_running_trials_are_pending_and_what_they_have_reported_counts():
    rng, space = np.random.default_rng(0), {"x": uniform(0, 1), "epochs": 9}
    configs = [sample(space, rng) for _ in range(14)]
    trials = [Trial(i, config, "random", status="done", curve=[(1, config["x"])]) for i, config in enumerate(configs)]
    for trial in trials[12:]:
        trial.status, trial.curve = "running", []
    losses = GPSearch(space).model(trials, rng).losses
    assert len(losses.process.X) == 12 and losses.X[12:, 0] == pytest.approx([config["x"] for config in configs[12:]])
    assert losses.b.shape == (14, GPSearch.settings.n_fantasies)
    for trial in trials[:12]:
        trial.curve = [(1, 1.0), (3, trial.config["x"])]
        trial.status = "stopped"
    trials[12].curve = [(1, 0.5)]
    losses = GPSearch(space, max_epochs=9).model(trials, rng).losses
    assert len(losses.process.X) == 2 * 12 + 1 and len(losses.X) == 2 * 12 + 1 + 2
    assert losses.X[-2:, 1] == pytest.approx(1)  # pending at the last epoch


def test_hundreds_of_duplicates_and_thirty_dimensions():
    space = {f"x{i}": uniform(0, 1) for i in range(30)}
    rng = np.random.default_rng(0)
    config = sample(space, rng)
    trials = [Trial(i, config, "start", status="done", curve=[(1, rng.normal())]) for i in range(300)]
    assert GPSearch(space).suggest(trials)[1] == "model"


def test_a_grid_is_searched_by_the_model_to_its_end(caplog):
    """Too large to be listed, small enough that whatever is near the optimum is taken: the model goes on all the same."""
    space = {"a": ordinal(list(range(50))), "b": ordinal(list(range(50))), "kind": choice(["u", "v"])}

    def objective(config):
        return (config["a"] - 20) ** 2 + (config["b"] - 30) ** 2 + 9 * (config["kind"] == "v")

    trials = run(GPSearch(space), objective, 70)
    assert {trial.origin for trial in trials[5:]} == {"model"} and not caplog.records
    best = sorted(trials, key=lambda trial: math.inf if trial.value is None else trial.value)[:9]
    assert best[0].value == 0
    assert {(trial.config["a"], trial.config["b"]) for trial in best} <= {
        (a, b) for a in range(17, 24) for b in range(27, 34)
    }


def test_a_trial_that_the_deadline_has_cut_off_before_it_reported_has_not_failed():
    space = {"x": uniform(0, 1)}
    trials = run(GPSearch(space), lambda config: config["x"], 12)
    ends = [("timeout", "deadline"), ("timeout", "--trial_timeout 5"), ("failed", "too bad")]
    for (status, error), is_failure in zip(ends, (False, True, True)):
        cut = replace(trials[-1], id=12, status=status, error=error, curve=[])
        model = GPSearch(space).model([*trials, cut], np.random.default_rng(0))
        assert (model.failures is not None) == is_failure


def test_few_failures_among_many_trials_are_all_remembered():
    rng, space = np.random.default_rng(0), {"x": uniform(0, 1)}
    xs = np.concatenate([[0.9, 0.91], 0.8 * rng.random(1200)])
    trials = [Trial(i, {"x": x}, "random", status="done", curve=[(1, (x - 0.8) ** 2)]) for i, x in enumerate(xs)]
    trials[:2] = [replace(trial, status="failed", curve=[]) for trial in trials[:2]]
    model = GPSearch(space).model(trials, rng)
    assert (model.failures.process.y == -1).sum() == 2


def test_epochs_from_zero_and_a_single_epoch_can_be_modelled():
    space = {"x": uniform(0, 1)}
    for max_epochs in (1, 9):
        cut = [Trial(i, {"x": i / 8}, "random", status="timeout", curve=[(0, 1.0 + i)]) for i in range(8)]
        assert GPSearch(space, max_epochs=max_epochs).suggest(cut)[1] == "model"


def test_random_fallback_says_so(caplog, monkeypatch):
    trials = run(GPSearch(SPACE), bowl, 10)
    taken = np.array([encode(SPACE, trials[3].config)])
    monkeypatch.setattr(GPSearch, "candidates", lambda self, model, trials, rng: taken)
    _, origin = GPSearch(SPACE).suggest(trials)
    assert origin == "random" and "trial 10 is drawn at random" in caplog.text


# ---- Learning curves ----------------------------------------------------------------------------------------------------
def test_losses_at_rungs_are_the_lowest_so_far():
    trial = Trial(0, {}, "model", status="stopped", curve=[(1, 0.9), (2, 0.5), (3, 0.6), (5, 0.4), (10, 0.7)])
    assert losses_at([1, 3, 9, 27, 81], trial) == [0.9, 0.5, 0.4]
    trial.status = "done"  # what it has is its value, however early it ended
    assert losses_at([1, 3, 9, 27, 81], trial) == [0.9, 0.5, 0.4, 0.4, 0.4]


def test_rungs_are_levelled_and_keep_what_tells_trials_apart():
    """Ten trials, the better five of which come to a second rung, on a hundredth of the scale and much lower."""
    first = np.linspace(0.5, 0.9, 10)
    losses = np.concatenate([first, 0.1 + first[:5] / 100])
    trial_of, rung_of = np.array([*range(10), *range(5)]), np.repeat([0, 1], [10, 5])
    y, (centre, unit) = standardise(losses, trial_of, rung_of, np.eye(10))
    assert (y[:10].mean(), y[:10].std()) == (pytest.approx(0), pytest.approx(1))
    assert y[10:] == pytest.approx(y[:5])
    assert centre + unit * y[10:] == pytest.approx(losses[10:])


def test_ties_at_a_rung_make_no_absurd_prediction():
    """Good trials all but tie at an accuracy of 1 from the second epoch on, as in the README's example."""
    space, rng = {"x": loguniform(1e-4, 1), "n": randint(1, 4), "epochs": 9}, np.random.default_rng(0)
    trials = [Trial(i, sample(space, rng), "random", status="done") for i in range(40)]
    for i, trial in enumerate(trials):
        if i % 2:
            trial.config |= {"x": 1 - 1e-3 * rng.random(), "n": 1}
        rate = trial.config["x"] / trial.config["n"]
        trial.curve = [(epoch, (1 - rate) ** epoch - 1) for epoch in range(1, 10)]
        if trial.curve[0][1] > -0.3 and i:
            trial.status, trial.curve = "stopped", trial.curve[:1]
    trial, epoch, mu, sigma = GPSearch(space, 0, 9).recommend(trials)
    assert epoch == 9
    assert trial.config["x"] > 0.99 and abs(mu + 1) < 0.01 and sigma < 0.02


@pytest.mark.parametrize("low", [-1e10, -1e300, -1.7e308])
@pytest.mark.parametrize("size", [1e-5, 1.0, 1e3])
def test_a_loss_far_below_all_others_is_the_best(low, size):
    rng = np.random.default_rng(0)
    trials = [Trial(i, sample(SPACE, rng), "random", status="done") for i in range(20)]
    for trial in trials:
        trial.curve = [(1, size * rng.random())]
    trials[7].curve = [(1, low)]
    for max_epochs in (None, 9):
        trial, _, mu, sigma = GPSearch(SPACE, 0, max_epochs).recommend(trials)
        assert trial.id == 7 and low * 1.01 < mu < 0 and math.isfinite(sigma)
        assert GPSearch(SPACE, 0, max_epochs).suggest(trials)[1] == "model"
        trials[3].status = "stopped"


def test_first_to_learn_at_all_is_not_hundreds_of_units_off():
    """After an epoch all are at chance, a thousandth apart; one of the two that go on then halves its loss."""
    losses = np.append(2.303 + 0.001 * np.linspace(-1, 1, 12), [1.2, 2.3])
    y, (centre, unit) = standardise(losses, np.array([*range(12), 0, 1]), np.repeat([0, 1], [12, 2]), np.eye(12))
    assert -5 < y[12] < y[:12].min() and y[13] < 5
    assert centre + unit * y[12:] == pytest.approx(losses[12:])


def test_the_unit_is_that_of_the_space_and_not_of_a_crowd():
    """A hundred trials in one place, of nearly the same loss, count about as one for the scale of the losses."""
    rng = np.random.default_rng(0)
    X = rng.random((30, 2))
    crowded = np.concatenate([X, 0.5 + 0.01 * rng.random((100, 2))])
    losses = np.concatenate([X.sum(axis=1), 1 + 0.001 * rng.random(100)])

    def unit(n):
        return standardise(losses[:n], np.arange(n), np.zeros(n, int), crowded[:n])[1][1]

    assert unit(130) == pytest.approx(unit(30), rel=0.15)
    assert losses.std() < 0.6 * losses[:30].std()  # what it would be otherwise


def test_high_losses_are_squashed_in_order():
    losses = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 5.0, 1e6, 1e30])
    y, (centre, unit) = standardise(losses, np.arange(8), np.zeros(8, int), np.eye(8))
    assert (np.diff(y[:7]) > 0).all() and y[6] == y[7] < 10
    assert centre + unit * y[:5] == pytest.approx(losses[:5], abs=1e-6)


def test_first_epochs_tell_of_the_last():
    """All were stopped after the first: those that were good there are expected to be the good ones at the end."""
    space, rng = {"x": uniform(0, 1), "y": uniform(0, 1)}, np.random.default_rng(0)
    trials = []
    for i, (x, y) in enumerate(rng.random((12, 2))):
        loss = 0.5 + (x - 0.3) ** 2 + 0.1 * y
        trials.append(Trial(i, {"x": x, "y": y}, "initial", status="stopped", curve=[(1, loss)]))
    searcher = GPSearch(space, max_epochs=81)
    model, X = searcher.model(trials, rng), np.array([list(trial.config.values()) for trial in trials])
    mu = searcher.predict(model.losses, X)[0].mean(axis=1)
    observed = model.losses.process.y
    assert np.corrcoef(mu, observed)[0, 1] > 0.9 and mu.std() > 0.5 * observed.std()


def stopped_run(n, max_epochs, threshold=0.05):
    """Trials of a bowl in x whose curves fall from it + 1 to it; those above `threshold` are stopped at the first epoch."""
    rng = np.random.default_rng(0)
    trials = []
    for i in range(n):
        config = {"x": float(rng.random()), "y": float(rng.random()), "epochs": max_epochs}
        loss = (config["x"] - 0.7) ** 2
        curve = [(e, loss + 1 / e) for e in range(1, max_epochs + 1)]
        stopped = loss > threshold
        trials.append(
            Trial(i, config, "random", status="stopped" if stopped else "done", curve=curve[: 1 if stopped else None])
        )
    return trials


def test_a_stopped_trial_is_not_a_bad_final_value():
    """Predicted at the last epoch, in the metric's own unit: what a stopped trial would have come to."""
    space, trials = {"x": uniform(0, 1), "y": uniform(0, 1), "epochs": 27}, stopped_run(30, 27, threshold=0.01)
    predicted = {}
    for max_epochs in (27, None):
        searcher = GPSearch(space, 0, max_epochs)
        model = searcher.model(trials, np.random.default_rng(0))
        centre, unit = model.units
        mu, _ = searcher.predict(model.losses, np.array([[0.45, 0.5]]))  # among the stopped ones
        predicted[max_epochs] = centre + unit * mu.mean()
    final = (0.45 - 0.7) ** 2 + 1 / 27
    assert predicted[27] == pytest.approx(final, abs=0.01) and predicted[None] > 1  # (no epochs: the value, 1.1)
    assert abs(GPSearch(space, 0, 27).suggest(trials)[0]["x"] - 0.7) < 0.15


def timed_run(max_epochs=9):
    """Trials of a bowl in y, each epoch of which takes 10^(2x) seconds; the last is pending."""
    rng, trials = np.random.default_rng(0), []
    for i in range(20):
        config = {"x": float(rng.random()), "y": float(rng.random()), "epochs": max_epochs}
        curve = [(e, (config["y"] - 0.7) ** 2 + 1 / e) for e in range(1, max_epochs + 1)]
        trials.append(Trial(i, config, "random", status="done", curve=curve, started=float(i)))
        trials[-1].ended = i + max_epochs * 10 ** (2 * config["x"])
    trials[-1] = replace(trials[-1], status="running", curve=[], ended=None)
    return trials


def test_improvement_is_augmented_unless_the_epoch_is_an_input():
    seen = []

    class Watched(GPSearch):
        @staticmethod
        def acquisition(mu, sigma, best, noise):
            seen.append(noise)
            return log_augmented_improvement(mu, sigma, best, noise)

    rng = np.random.default_rng(0)
    trials = [Trial(i, sample(SPACE, rng), "random", status="done") for i in range(12)]
    for trial in trials:
        trial.curve = [(epoch, rng.random()) for epoch in (1, 3)]
    searcher = Watched(SPACE, 0, 3)
    searcher.suggest(trials)
    assert seen and min(seen) > 0
    trials[5].status, trials[5].curve = "stopped", trials[5].curve[:1]
    seen.clear()
    searcher.suggest(trials)
    assert seen and max(seen) == 0


def test_improvement_counts_per_second_while_other_trials_run():
    space, trials, epochs = {"x": uniform(0, 1), "y": uniform(0, 1), "epochs": 9}, timed_run(), 9

    class Timeless(GPSearch):
        settings = Settings(cost_power=0.0)

    x = [GPSearch(space, seed, epochs).suggest(trials)[0]["x"] for seed in range(8)]
    timeless = [Timeless(space, seed, epochs).suggest(trials)[0]["x"] for seed in range(8)]
    assert max(x) < 0.2
    assert max(timeless) > 0.6
    # predicted seconds are those that were measured
    searcher = GPSearch(space, 0, epochs)
    costs = searcher.model(trials, np.random.default_rng(0)).costs
    seconds = np.exp(cost_features(np.array([[0.5, 0.5], [0.9, 0.3]])) @ costs)
    assert seconds == pytest.approx([10, 10**1.8], rel=0.1)


def test_times_are_of_no_matter_where_a_run_must_come_out_the_same():
    """With one worker, where the resource is not known, and before there are times."""
    space, trials = {"x": uniform(0, 1), "y": uniform(0, 1), "epochs": 9}, timed_run()
    slower = [replace(trial, ended=trial.ended and trial.ended + 50) for trial in trials]
    assert GPSearch(space, 0, 9).suggest(trials) != GPSearch(space, 0, 9).suggest(slower)
    assert GPSearch(space, 0, 9).suggest(trials[:-1]) == GPSearch(space, 0, 9).suggest(slower[:-1])
    assert GPSearch(space, 0, None).suggest(trials) == GPSearch(space, 0, None).suggest(slower)
    unknown = [replace(trial, ended=None) for trial in trials]
    assert GPSearch(space, 0, 9).model(unknown, np.random.default_rng(0)).costs is None
    odd = [replace(trial, started=0.0, ended=0.0, curve=[(0, 1.0)]) for trial in trials[:-1]] + trials[-1:]
    assert GPSearch(space, 0, 9).suggest(odd)[1] == "model"


def test_where_none_is_done_the_recommended_trial_is_one_that_has_come_furthest():
    """Ended by Ctrl-C after ten minutes, say: what the model makes of trials that were stopped at once is a guess."""
    space, trials = {"x": uniform(0, 1), "y": uniform(0, 1), "epochs": 27}, stopped_run(30, 27)
    for trial in trials:
        if trial.status == "done":
            trial.status, trial.curve = "timeout", trial.curve[: 5 if trial.config["y"] < 0.5 else 12]
    trial, epoch, mu, sigma = GPSearch(space, 0, 27).recommend(trials)
    assert (trial.n_epochs, epoch) == (12, 9)
    assert mu == pytest.approx(trial.curve[8][1], abs=0.02)  # as far as it has come, by rungs: at epoch 9
    assert sigma < 0.05


def test_complete_trials_are_modelled_by_their_values_alone():
    trials = [trial for trial in stopped_run(40, 27) if trial.status == "done"]
    for i, trial in enumerate(trials):
        trial.id = i
    space = {"x": uniform(0, 1), "y": uniform(0, 1), "epochs": 27}
    short = [Trial(t.id, t.config, t.origin, status="done", curve=[(27, t.value)]) for t in trials]
    assert GPSearch(space, 0, 27).suggest(trials) == GPSearch(space, 0, None).suggest(short)


def test_none_is_recommended_while_a_poor_trial_alone_has_come_furthest():
    space, rng = {"x": uniform(0, 1), "epochs": 27}, np.random.default_rng(0)
    trials = [Trial(i, sample(space, rng), "random", status="stopped", curve=[(1, 0.1 * i)]) for i in range(8)]
    trials[7].curve = [(epoch, 0.7) for epoch in range(1, 28)]
    assert GPSearch(space, 0, 27).recommend(trials) is None
    trials[7].curve[-1] = (27, -0.1)
    trial, epoch, *_ = GPSearch(space, 0, 27).recommend(trials)
    assert (trial.id, epoch) == (7, 27)


def test_the_recommended_trial_is_not_the_luckiest():
    """In noise as large as half of the landscape, the lowest value of repeated configurations is not the one to take."""
    rng, space = np.random.default_rng(0), {"x": uniform(0, 1)}
    xs = np.linspace(0, 1, 60)
    trials = [
        Trial(i, {"x": float(x)}, "model", status="done", curve=[(1, float(4 * (x - 0.7) ** 2 + 0.3 * rng.normal()))])
        for i, x in enumerate(xs)
    ]
    trials[5].curve = [(1, -0.6)]  # at x = 0.08, where 1.5 is true
    trial, _, mu, sigma = GPSearch(space).recommend(trials)
    assert min(trials, key=lambda trial: trial.value).id == 5
    assert abs(trial.config["x"] - 0.7) < 0.15
    assert abs(mu) < 3 * sigma < 0.6
    assert GPSearch(space).recommend(trials[:3]) is None
