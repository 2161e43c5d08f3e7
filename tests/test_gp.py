"""GPSearch: its mathematics against oracles, and what a user relies on."""

import math
from dataclasses import replace

import numpy as np
import pytest

from experiments.simulated import simulate
from hpo import searchers
from hpo.searchers import GaussianProcess, GPSearch, RandomSearch, Settings
from hpo.space import choice, decode, loguniform, ordinal, randint, sample, uniform
from hpo.trial import Trial

SQUARE = {"x": uniform(0, 1), "y": uniform(0, 1)}
LINE = {"x": uniform(0, 1)}
SPACE = {**LINE, "lr": loguniform(1e-4, 1), "n": randint(1, 9), "kind": choice(["a", "b"])}


def bowl(config):
    x, lr, n, kind = (config[name] for name in ("x", "lr", "n", "kind"))
    return (x - 0.7) ** 2 + (math.log10(lr) + 2) ** 2 / 4 + (n - 4) ** 2 / 20 + (kind == "a")


def ended(configs, losses, status="done"):
    """Trials with one report each; a loss that is NaN is a failure."""
    trials = [Trial(i, config, "random", 1, status) for i, config in enumerate(configs)]
    for trial, loss in zip(trials, losses):
        trial.status = "failed" if math.isnan(loss) else status
        trial.curve = [] if math.isnan(loss) else [(1, loss)]
    return trials


def on_line(xs, losses, status="done"):
    return ended([{"x": float(x)} for x in xs], [float(loss) for loss in losses], status)


def samples(space, n, rng):
    return [sample(space, rng) for _ in range(n)]


# ---- Mathematics ---------------------------------------------------------------------------------
def process(n=25, groups=(0, 1, 2, 2), with_epoch=False, **settings):
    rng, groups = np.random.default_rng(0), np.array(groups)
    X, y = rng.random((n, len(groups) + with_epoch)), rng.normal(size=n)
    return GaussianProcess(X, y, groups, Settings(**settings)), rng


def textbook_kernel(gp, theta, A, B):
    """k entry by entry, from its definition."""
    lengthscales, ridge, signal = np.exp(theta[: gp.p]), theta[gp.p : -2], math.exp(theta[-2])
    trend = Settings().trend / math.sqrt(gp.p)
    S = np.array([*np.sqrt(gp.S[:2]), *trend / np.array([1, 1, 2, 2, 3, 3, 1, 1])]) ** 2

    def k(x, z):
        squares = np.bincount(gp.groups, (x - z) ** 2) / lengthscales**2  # of each hyperparameter
        r = math.sqrt(squares.sum() + ((x - z) @ ridge) ** 2)
        return signal * (1 + math.sqrt(5) * r + 5 * r * r / 3) * math.exp(-math.sqrt(5) * r)

    of_mean = (textbook_basis(A) * S) @ textbook_basis(B).T
    return np.array([[k(x, z) for z in B] for x in A]) + of_mean


def textbook_basis(X):
    """Of the groups (0, 1, 2, 2), with or without an epoch."""
    x, z = X[:, 0], X[:, 1]
    bowl = ((2 * x - 1) ** 2 + (2 * z - 1) ** 2) / math.sqrt(2)
    waves = [np.cos(k * math.pi * column) for k in (1, 2, 3) for column in (x, z)]
    return np.column_stack([np.ones(len(X)), bowl, *waves, X[:, 2], X[:, 3]])


@pytest.mark.parametrize("with_epoch", [False, True])
def test_kernel_matches_its_formula_and_gradient_finite_differences(with_epoch):
    gp, rng = process(with_epoch=with_epoch)
    theta = gp.prior_mean + 0.5 * gp.prior_sd * rng.normal(size=len(gp.prior_mean))
    A = rng.random((9, len(gp.groups)))
    kernel = gp.condition(theta, np.zeros(25)).kernel(A, gp.basis(A), gp.X, gp.h)
    assert kernel == pytest.approx(textbook_kernel(gp, theta, A, gp.X), rel=1e-7)
    assert len(theta) == (4 + 5 + 2 if with_epoch else 3 + 4 + 2)
    steps = 1e-5 * np.diag(np.minimum(1, gp.prior_sd))  # the epoch's part of the ridge stays 0
    up, down = ([gp.log_posterior(theta + sign * s)[0] for s in steps] for sign in (1, -1))
    expected = (np.array(up) - down) / (2 * np.diag(steps))
    gradient = gp.log_posterior(theta)[1]
    free = gp.prior_sd > 1e-6
    assert gradient[free] == pytest.approx(expected[free], abs=1e-6)


def test_fit_reaches_a_maximum_and_finds_a_ridge():
    gp, rng = process(60)
    theta = gp.fit()
    value, gradient = gp.log_posterior(theta)
    assert np.linalg.norm(gradient) < 0.005 * np.linalg.norm(gp.log_posterior(gp.prior_mean)[1])
    assert value >= gp.log_posterior(theta + 0.1 * rng.normal(size=9))[0]
    # y depends on one combination of two of four columns; along it the process predicts better
    rng = np.random.default_rng(0)
    X, X_new, errors = rng.random((40, 4)), rng.random((500, 4)), []
    y, y_new = (np.sin(6 * (A[:, 0] - 0.7 * A[:, 2])) for A in (X, X_new))
    for settings in (Settings(ridge=(0.0, 1e-6)), Settings()):
        gp = GaussianProcess(X, y, np.arange(4), settings)
        theta = gp.fit()
        mu, _ = gp.condition(theta, np.zeros(40)).predict(X_new)
        errors.append(np.abs(mu[:, 0] - y_new).mean())
    ridge = theta[4:8] / np.linalg.norm(theta[4:8])
    assert abs(ridge @ np.array([1, 0, -0.7, 0])) / math.hypot(1, 0.7) > 0.98
    assert errors[1] < 0.2 * errors[0]


@pytest.mark.parametrize("n, constant", [(25, 0.0), (130, 2.0)])
def test_posterior_and_its_draws_match_the_dense_formula(n, constant):
    """With noise of its own in each row."""
    gp, rng = process(n, constant=(constant, 3.0), bowl=(0.7, 0.4))
    theta, X_new = gp.prior_mean + 0.3 * rng.normal(size=9), rng.random((7, 4))
    extra_noise = rng.random(n) * (np.arange(n) % 2)
    posterior = gp.condition(theta, extra_noise)
    mu, sigma = posterior.predict(X_new)
    K = textbook_kernel(gp, theta, gp.X, gp.X) + np.diag(math.exp(theta[-1]) + extra_noise)
    k, K_inv = textbook_kernel(gp, theta, X_new, gp.X), np.linalg.inv(K)
    mean, mean_new = (constant + 0.7 * textbook_basis(X)[:, 1] for X in (gp.X, X_new))
    covariance = textbook_kernel(gp, theta, X_new, X_new) - k @ K_inv @ k.T
    assert mu.shape == sigma.shape == (7, 1)
    assert mu[:, 0] == pytest.approx(mean_new + k @ K_inv @ (gp.y - mean), abs=1e-6)
    assert sigma[:, 0] ** 2 == pytest.approx(np.diag(covariance), abs=1e-6)
    draws = posterior.sample(X_new, rng, 4000)
    assert draws.mean(axis=1) == pytest.approx(mu[:, 0], abs=5 * sigma.max() / 4000**0.5)
    assert np.cov(draws) == pytest.approx(covariance, abs=0.1 * sigma.max() ** 2)


def test_log_expected_improvement_matches_high_precision_values():
    """ln(phi(z) + z Phi(z)), for z = (best - mu) / sigma, by mpmath with 80 digits."""
    z = np.array([-1000, -300, -50, -10, -3, -1, -0.1, 0, 0.1, 1, 3, 30])
    frozen = [-500014.73445209116, -45012.32653681455, -1258.744182868461, -55.55312203612235]
    frozen += [-7.869686059603029, -2.4851210257126413, -1.047153314072846, -0.9189385332046728]
    frozen += [-0.7964313395507471, 0.08002621884930694, 1.0987396653277077, 3.4011973816621555]
    for mu, sigma in ((0.3, 1.0), (0.0, 1e-9)):
        found = GPSearch(LINE).acquisition(mu, sigma, mu + sigma * z)
        assert found == pytest.approx(math.log(sigma) + np.array(frozen), abs=2e-8)


@pytest.mark.parametrize("is_cut", [False, True])
def test_score_counts_what_the_first_report_would_tell(is_cut):
    searcher, trials = GPSearch(SQUARE, 0, 9), run_with_curves("y", 20, 9, 0.1 if is_cut else 1)
    model = searcher.model(trials, np.random.default_rng(0))
    X = np.random.default_rng(1).random((50, 2))
    (mu, sigma), (_, first), best = model.predict(X), model.predict(X, 0.0), np.array([-0.5])
    assert is_cut == (not np.allclose(sigma, first)) == model.with_epoch
    noise = math.exp(model.theta[-1] / 2)
    factor = 1 - noise / np.hypot(noise, first)[:, 0]
    expected = searcher.acquisition(mu, sigma, best - 0.1 * is_cut)[:, 0] + np.log(factor)
    assert searcher.score(model, X, best) == pytest.approx(expected, abs=1e-6)


# ---- Behaviour -----------------------------------------------------------------------------------
def run(searcher, space, loss, n, n_workers=1):
    """Trials of one report each, of which the losses that are NaN fail."""

    def objective(config, rng):
        yield rng.lognormal(0, 0.5), {"loss": loss(config)}

    return simulate(searcher, space, objective, n_workers=n_workers, n_trials=n, start=[])


def lowest(trials):
    return min(trial.value for trial in trials if trial.value is not None)


def test_beats_random_search_by_a_margin_and_random_search_does_not():
    def mean_best(searcher, seeds):
        runs = [run(searcher(SPACE, seed), SPACE, bowl, 30, n_workers=4) for seed in seeds]
        return np.mean([lowest(trials) for trials in runs])

    limit = 0.3 * mean_best(RandomSearch, range(3))
    assert mean_best(GPSearch, range(3)) < limit
    assert not mean_best(RandomSearch, range(3, 6)) < limit


def test_every_fourth_suggestion_is_of_the_category_tried_least():
    """So that one which is good at once is no trap."""
    space = {"x": uniform(0, 1), "kind": choice(["a", "b", "c"]), "flag": choice([True, False])}
    loss = lambda config: config["x"] + (config["kind"] != "a") + config["flag"]
    trials = run(GPSearch(space), space, loss, 32)
    for i in range(7, 32, 4):
        # of k values each should have 1/k
        counts = {v: 3 * sum(t.config["kind"] == v for t in trials[:i]) for v in "abc"}
        counts |= {v: 2 * sum(t.config["flag"] is v for t in trials[:i]) for v in (True, False)}
        least = {value for value, n in counts.items() if n == min(counts.values())}
        assert least & {trials[i].config["kind"], trials[i].config["flag"]}
    assert sum(trial.config["kind"] == "a" for trial in trials) >= 14  # where it is good
    losses = [0.0, 0.0, math.nan]  # a failure says more, so "a" has had less
    trials = ended([{"x": i / 9, "kind": "aab"[i]} for i in range(3)], losses)
    assert GPSearch({**LINE, "kind": choice(["a", "b"])}).category_in_turn(trials) == 1


def fails_with_a_category(config):
    loss = (config["x"] - 0.3) ** 2 + (config["y"] - 0.6) ** 2
    return math.nan if config["kind"] == "broken" else loss


def fails_next_to_the_optimum(config):
    excess = math.log10(config["lr"]) + 1 - 0.5 * config["momentum"]
    loss = (excess + 0.2) ** 2 + (config["momentum"] - 0.9) ** 2 + 0.1 * config["x"]
    return math.nan if excess > 0 else loss


KINDS = {**SQUARE, "kind": choice(["works", "broken"])}
RATES = {"lr": loguniform(1e-6, 10), "momentum": uniform(0, 0.99), **LINE}


@pytest.mark.parametrize(
    "loss, space, n_workers, n_late, best",
    [(fails_with_a_category, KINDS, 4, 24, 0.01), (fails_next_to_the_optimum, RATES, 1, 22, 0.03)],
)
def test_region_that_fails_is_left(loss, space, n_workers, n_late, best):
    trials = run(GPSearch(space), space, loss, 50, n_workers)
    failed = [trial.status == "failed" for trial in trials]
    assert 1 <= sum(failed[:20]) and sum(failed[20:]) <= n_late and lowest(trials) < best


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_initial_points_and_the_middle_share_out_every_range_and_choice(seed):
    space = {**{f"x{i}": uniform(0, 1) for i in range(12)}, "kind": choice(["a", "b", "c"])}
    space["many"] = choice(list(range(9)))
    searcher, n = GPSearch(space, seed), 5
    for block in (0, n):
        configs = [decode(space, searcher.initial_point(i)) for i in range(block, block + n)]
        for i in range(12):
            assert sorted(int(n * config[f"x{i}"]) for config in configs) == list(range(n))
        assert configs[0]["kind"] == "a" and {c["kind"] for c in configs[:3]} == set("abc")
        assert len({config["many"] for config in configs}) == n
        assert all(abs(configs[0][f"x{i}"] - 0.5) <= 0.1 for i in range(12))


def test_a_loss_out_of_proportion_counts_as_a_failure():
    """Nothing of the model depends on how large the losses of diverged trainings are."""
    rng, searcher = np.random.default_rng(0), GPSearch(SPACE)
    configs = samples(SPACE, 24, rng)
    suggestions = []
    for exponents in (3 + rng.random(24), 6 + rng.random(24), np.full(24, 300.0)):
        losses = [bowl(c) if i % 3 else 10 ** exponents[i] for i, c in enumerate(configs)]
        trials = ended(configs, losses)
        suggestions.append(searcher.suggest(trials)[0])
        model = searcher.model(trials, np.random.default_rng(0))
        assert len(model.tried) == 16 and (model.y[16:] == 2).all()
        assert searcher.recommend(trials)[0].id % 3
    assert suggestions[0] == suggestions[1] == suggestions[2]


AWKWARD = {
    "all equal": [1.0] * 12, "two": [1.0, 2.0], "one good": [math.nan] * 11 + [1.0],
    "huge": [1e300 * (i + 1) for i in range(12)], "tiny": [1e-300 * i for i in range(12)],
    "outliers": [0.1 * i for i in range(10)] + [1e30, -1.7e308],
    "subnormal": [5e-324 * (i % 4) for i in range(25)],
    "half failed": [math.nan if i % 2 else float(i) for i in range(20)],
    "one place": [i % 7 for i in range(200)], "huge integers": [10**30 * i for i in range(9)],
    "numbers of numpy": [kind(i) for kind in (np.int8, np.float16, np.float32) for i in range(9)],
}  # fmt: skip


@pytest.mark.parametrize("name", AWKWARD)
@pytest.mark.parametrize("n_pending, max_epochs", [(0, None), (64, 1), (64, 9)])
def test_awkward_data_gives_a_suggestion(name, n_pending, max_epochs):
    rng, losses = np.random.default_rng(0), AWKWARD[name]
    space = {**SPACE, "steps": randint(1, 5), "size": ordinal([3, 1, 2]), "epochs": 9}
    configs = samples(space, 1 if name == "one place" else len(losses), rng) * len(losses)
    trials, searcher = ended(configs[: len(losses)], losses), GPSearch(space, 0, max_epochs)
    for trial in trials:
        trial.curve = [(0, loss) for _, loss in trial.curve]  # epochs that count from 0
    for config in samples(space, n_pending, rng):
        trials.append(Trial(len(trials), config, "random"))
    config, origin = searcher.suggest(trials)
    n_losses = sum(map(math.isfinite, losses))
    assert set(config) == set(space)
    assert origin == ("model" if n_losses >= 2 and len(trials) >= 5 else "initial")
    if name == "outliers":
        trial, _, mu, sigma = searcher.recommend(trials)
        assert trial.id == 11 and -1.71e308 < mu < 0 and math.isfinite(sigma)


def test_running_trials_are_pending_and_what_they_have_reported_counts():
    rng = np.random.default_rng(0)
    xs = rng.random(14)
    trials = on_line(xs, xs)
    for trial in trials[12:]:
        trial.status, trial.curve = "running", []
    model = GPSearch(LINE).model(trials, rng)
    assert model.X[:, 0] == pytest.approx(xs) and len(model.tried) == 14
    mu, sigma = model.predict(xs[12:, None])  # drawn losses stand in for each
    assert mu.shape == (2, 4)
    assert mu == pytest.approx(model.y[12:], abs=0.1) and sigma.max() < 0.1
    for trial in trials[:12]:
        trial.status, trial.curve = "stopped", [(1, 1.0), (3, trial.config["x"])]
    trials[12].curve = [(1, 0.5)]
    process = GPSearch(LINE, max_epochs=9).model(trials, rng)
    assert len(process.X) == 2 * 12 + 1 + 2
    assert process.X[-2:, 1] == pytest.approx(1)  # pending at the last epoch


def test_a_trial_that_was_cut_off_before_it_reported_has_not_failed():
    ends = [("timeout", "deadline", False), ("interrupted", "SIGINT", False)]
    ends += [("timeout", "--trial_timeout 5", True), ("failed", "too bad", True)]
    rng, trials = np.random.default_rng(0), on_line(np.linspace(0, 1, 12), np.linspace(0, 1, 12))
    for status, error, is_failure in ends:
        cut = Trial(12, {"x": 0.5}, "model", 1, status, error=error)
        y = GPSearch(LINE).model([*trials, cut], rng).y
        assert len(y) == 12 + is_failure and (y[12:] == GPSearch.settings.failure).all()


# ---- Learning curves -----------------------------------------------------------------------------
def standardised(losses, trial_of=None):
    """y and (centre, unit); the second report of a trial is of the second rung."""
    trial_of = np.arange(len(losses)) if trial_of is None else np.array(trial_of)
    rung_of = [list(trial_of[:i]).count(t) for i, t in enumerate(trial_of)]
    table = np.full((max(trial_of) + 1, max(rung_of) + 1), math.nan)
    table[trial_of, rung_of] = losses
    y, *line = searchers.standardise(table, Settings())
    return y[trial_of, rung_of], line


def test_rungs_are_levelled_and_keep_what_tells_trials_apart():
    long, from_0 = [(1, 0.9), (2, 0.5), (3, 0.6), (5, 0.4), (10, 0.7)], [(0, 0.9), (2, 0.7)]
    for status, curve, expected in (
        ("stopped", long, [0.9, 0.5, 0.4, math.nan, math.nan]),  # the lowest so far
        ("done", long, [0.9, 0.5, 0.4, 0.4, 0.4]),  # its value, however early it ended
        ("stopped", from_0, [0.9] + [math.nan] * 4),
    ):
        found = searchers.losses_at([1, 3, 9, 27, 81], [Trial(0, {}, "a", 1, status, curve)])
        assert found == pytest.approx(np.array([expected]), nan_ok=True)
    # the better five of ten come to a second rung, much lower and on a hundredth of the scale
    first = np.linspace(0.5, 0.9, 10)
    second = 0.1 + first[:5] / 100
    y, (centre, unit) = standardised([*first, *second], [*range(10), *range(5)])
    assert (y[:10].mean(), y[:10].std()) == (pytest.approx(0), pytest.approx(1))
    assert y[10:] == pytest.approx(y[:5]) and centre + unit * y[10:] == pytest.approx(second)


def test_the_unit_is_that_of_the_first_losses_and_of_usable_ones():
    rng = np.random.default_rng(0)
    first, crowd = rng.random(20), 0.1 + 0.001 * rng.random(200)
    y, (_, unit) = standardised([*first, *crowd])
    assert unit == pytest.approx(standardised(first)[1][1], rel=1e-6)
    losses = [0.0, 0.1, 0.2, 0.3, 0.4, 0.8, 0.9, 5.0, 1e6, 1e30]
    y, (centre, unit) = standardised(losses)
    assert (np.diff(y[:8]) > 0).all() and y[7] < 5  # high ones are squashed, in order
    assert np.isinf(y[8:]).all()  # higher ones are outliers
    assert centre + unit * y[:5] == pytest.approx(losses[:5], abs=1e-6)
    for scale in (1e-300, 1e300):  # nothing overflows, and the unit does not matter
        scaled = standardised(scale * np.array(losses[:8]))[0]
        assert scaled == pytest.approx(standardised(losses[:8])[0])


def run_with_curves(name, n, max_epochs, threshold=math.inf):
    """Curves fall from a bowl, plus 1, to it; the poor are stopped. An epoch takes 10^(2x) s."""
    trials = ended(samples(SQUARE, n, np.random.default_rng(0)), [0.0] * n)
    for i, trial in enumerate(trials):
        loss = (trial.config[name] - 0.7) ** 2
        trial.curve = [(e, loss + 1 / e) for e in range(1, max_epochs + 1)]
        if loss > threshold:
            trial.status, trial.curve = "stopped", trial.curve[:1]
        trial.started, trial.ended = float(i), i + trial.n_epochs * 10 ** (2 * trial.config["x"])
    return trials


def test_a_stopped_trial_is_not_a_bad_final_value():
    """It is predicted at the last epoch, in the metric's own unit."""
    trials = run_with_curves("x", 30, 27, threshold=0.01)
    model = GPSearch(SQUARE, 0, 27).model(trials, np.random.default_rng(0))
    mu, _ = model.predict(np.array([[0.45, 0.5]]))  # among the stopped ones, whose values are 1.1
    predicted = model.centre + model.unit * mu.mean()
    assert predicted == pytest.approx((0.45 - 0.7) ** 2 + 1 / 27, abs=0.02)
    assert abs(GPSearch(SQUARE, 0, 27).suggest(trials)[0]["x"] - 0.7) < 0.15


NETWORKS = {"n": randint(4, 1024), "m": randint(4, 1024), "batch": randint(8, 128)}
NETWORKS |= {"rate": loguniform(1e-6, 1), "epochs": 81}


def network_loss(config, epoch):
    """Chance at high rates; small networks are fast and poor."""
    log_rate = math.log10(config["rate"])
    width = 1 - 0.3 * math.exp(-config["n"] / 200) - 0.2 * math.exp(-config["m"] / 200)
    accuracy = 0.9 * width * math.exp(-((log_rate + 3) ** 2) / 8) if log_rate < -1.5 else 0.1
    return 0.9 - (accuracy - 0.1) * (1 - 0.12 * epoch**-0.5)


def test_a_poor_trial_alone_at_the_last_epoch_does_not_make_the_fastest_the_best():
    """Early in the main job: good trials are at epoch 13, and one at chance has come to 81."""
    n_epochs = [1, 1, 81, 1, 13, 1, 3, 1, 1, 1, 3, 1, 13, 1, 3, 1, 1, 1, 3, 6, 18, 6]
    losses = []
    for seed in range(8):
        rng, trials = np.random.default_rng(seed), []
        for i, n in enumerate(n_epochs):
            config = sample(NETWORKS, rng)
            if i >= 5:
                config |= {name: int(rng.integers(350, 650)) for name in ("n", "m")}
                config |= {"rate": 10 ** rng.normal(-3, 0.2), "batch": int(rng.integers(35, 60))}
            elif i == 2:
                config["rate"] = 0.5
            curve = [(e, network_loss(config, e) + 0.004 * rng.normal()) for e in range(1, n + 1)]
            seconds = n * (0.5 + 0.6 * (config["n"] + config["m"]) / config["batch"])
            trials.append(Trial(i, config, "model", 1, "stopped", curve, ended=seconds))
        for trial in trials[19:]:
            trial.status, trial.ended = "running", None
        losses.append(network_loss(GPSearch(NETWORKS, seed, 81).suggest(trials)[0], 81))
    assert np.median(losses) < 0.2  # the best: 0.1; at chance: 0.9


def test_improvement_counts_per_second_while_other_trials_run():
    trials = run_with_curves("y", 20, 9)
    trials[-1].status, trials[-1].curve, trials[-1].ended = "running", [], None
    x, timeless = (
        [searcher(SQUARE, seed, 9).suggest(trials)[0]["x"] for seed in range(5)]
        for searcher in (GPSearch, searchers.find_searcher("gp:cost_power=0.0"))
    )
    assert max(x) < 0.3 < min(timeless)
    costs = GPSearch(SQUARE, 0, 9).model(trials, np.random.default_rng(0)).costs
    seconds = np.exp(searchers.cost_features(np.array([[0.5, 0.5], [0.9, 0.3]])) @ costs)
    assert seconds == pytest.approx([10, 10**1.8], rel=0.1)  # those that were measured
    # not with one worker, where epochs are not known, and before there are times
    searcher = GPSearch(SQUARE, 0, 9)
    slower = [replace(trial, ended=trial.ended and trial.ended + 50) for trial in trials]
    assert searcher.suggest(trials) != searcher.suggest(slower)
    assert searcher.suggest(trials[:-1]) == searcher.suggest(slower[:-1])
    assert GPSearch(SQUARE).suggest(trials) == GPSearch(SQUARE).suggest(slower)


def test_where_none_is_done_the_recommended_trial_is_one_that_has_come_furthest():
    """Ended by Ctrl-C, say: what the model makes of trials that were stopped at once is a guess."""
    trials = run_with_curves("x", 30, 27, threshold=0.05)
    for trial in trials:
        if trial.status == "done":
            n = 5 if trial.config["y"] < 0.5 else 12
            trial.status, trial.curve = "timeout", trial.curve[:n]
    trial, epoch, mu, _ = GPSearch(SQUARE, 0, 27).recommend(trials)
    assert (trial.n_epochs, epoch) == (12, 9)
    assert mu == pytest.approx(trial.curve[8][1], abs=0.02)  # by rungs: at epoch 9
    trials = on_line(np.arange(8) / 8, 0.1 * np.arange(8), "stopped")
    trials[7].curve = [(epoch, 0.7) for epoch in range(1, 28)]  # alone, and poor
    assert GPSearch(LINE, 0, 27).recommend(trials) is None


def test_the_recommended_trial_is_not_the_luckiest():
    """In noise as large as half of the landscape, the lowest value is not the one to take."""
    rng, xs = np.random.default_rng(0), np.linspace(0, 1, 60)
    trials = on_line(xs, 4 * (xs - 0.7) ** 2 + 0.3 * rng.normal(size=60))
    trials[5].curve = [(1, -0.6)]  # at x = 0.08, where 1.5 is true
    trial, _, mu, sigma = GPSearch(LINE).recommend(trials)
    assert min(trials, key=lambda trial: trial.value).id == 5
    assert abs(trial.config["x"] - 0.7) < 0.15 and abs(mu) < 0.2
    assert 0.3 < sigma < 0.45  # of a new training: its noise and what is not known of its mean
    assert GPSearch(LINE).recommend(trials[:3]) is None
