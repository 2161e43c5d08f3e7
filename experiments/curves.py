"""Recorded learning curves, and a surrogate that draws new ones from them.

The surrogate is a forest of extremely randomised trees (Geurts, Ernst and Wehenkel 2006), as a
Gaussian process would favour a searcher that uses one. w (n,) is the share of the trees in which a
recorded configuration has the same leaf as the new one. Then, in log loss,

    curve = sum_i w_i smooth_i + residual_j + level

smooth_i is a recorded curve without its jitter. residual_j is the jitter of one of the five curves
most like the sum. level ~ N(0, s^2), where s comes from configurations that were recorded more than
once. No drawn curve is much better than the best recorded one. A second forest draws the seconds.
"""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hpo.journal import SIGN, Journal, load_run, read_events
from hpo.space import config_key, domains, encode, space_from_json

SMOOTH = 0.12  # width of the smoothing in ln(epoch): at epoch 81 about 10 epochs either way
N_ALIKE = 5  # curves whose jitter a new one may have
EPOCHS = (1, 3, 9, 27, 81)  # at which, or at the next report, the forest compares curves


# ---- Recordings ----
@dataclass
class Curve:
    """One trial: hyperparameters, losses (k,) at its epochs (k,), and seconds (k,) before each."""

    config: dict
    epochs: np.ndarray
    losses: np.ndarray
    seconds: np.ndarray

    @property
    def rates(self):
        """(k,) epochs per second before each report."""
        return np.diff([0, *self.epochs]) / np.maximum(self.seconds, 1e-3)


@dataclass
class Recording:
    """The curves of one or more runs of the same problem."""

    space: dict
    metric: str
    mode: str
    max_epochs: int
    machine: str
    curves: list

    @property
    def about(self):
        n_whole = sum(curve.epochs[-1] == self.max_epochs for curve in self.curves)
        return f"{len(self.curves)} recorded curves, {n_whole} of them to epoch {self.max_epochs}"


def read(paths):
    """Recording of runs' folders and packed files; ValueError where they are not of one problem."""
    paths, problems = [Path(path) for path in paths], []
    recordings = [read_packed(path) if path.is_file() else read_folder(path) for path in paths]
    for path, recording in zip(paths, recordings):
        space = {name: v for name, v in recording.space.items() if not name.endswith("_path")}
        problems.append((recording.metric, recording.mode, space))
        if problems[-1] != problems[0]:
            raise ValueError(f"{path}: its space, metric or mode differs from that of {paths[0]}")
        if not recording.curves:
            raise ValueError(f"{path}: no trial has reported {recording.metric}")
    put_on_one_clock(recordings)
    machines = dict.fromkeys(recording.machine for recording in recordings)
    distinct = {}  # each training once: a run may be given twice, or two runs may begin alike
    for curve in [curve for recording in recordings for curve in recording.curves]:
        key = config_key(curve.config), f"{curve.losses[0]:.4g}"
        distinct[key] = max(distinct.get(key, curve), curve, key=lambda c: len(c.losses))
    return replace(recordings[0], machine="; ".join(machines), curves=list(distinct.values()))


def put_on_one_clock(recordings):
    """Scales all seconds to the first machine, by configurations that two recordings share.

    Most runs share the middle of the space. A recording that shares none keeps its seconds.
    """
    known = {}  # configuration -> seconds of an epoch
    for recording in recordings:
        own = {config_key(c.config): 1 / np.median(c.rates) for c in recording.curves}
        ratios = [math.log(known[key] / own[key]) for key in own if key in known]
        factor = math.exp(np.mean(ratios or [0.0]))
        for curve in recording.curves:
            curve.seconds = factor * curve.seconds
        known = {key: factor * seconds for key, seconds in own.items()} | known


def read_folder(folder):
    """Recording of a run's folder. A report of epoch 0 is only time before epoch 1."""
    run, times, curves = load_run(folder), {}, []  # times: of the report of (trial, attempt, epoch)
    journal = Journal(run)
    for event in read_events(folder, journal):
        if run["metric"] in event.get("metrics", ()):
            times[event["report"], event["attempt"], event["epoch"]] = event["at"]
    for trial in [trial for trial in journal.trials if trial.status != "failed"]:
        losses = {epoch: loss for epoch, loss in sorted(dict(trial.curve).items()) if epoch > 0}
        keys = [(trial.id, trial.attempt, epoch) for epoch in losses]
        if losses and times.keys() >= set(keys):  # not one that continued from a checkpoint
            config = {name: trial.config[name] for name in domains(run["space"])}
            seconds = np.diff([trial.started, *(times[key] for key in keys)])
            curves.append(Curve(config, np.array([*losses]), np.array([*losses.values()]), seconds))
    max_epochs = run["space"].get(run["arguments"].get("epochs_name", "epochs"))
    machine = f"{run['machine']}, {run['arguments'].get('workers')} workers"
    return Recording(run["space"], run["metric"], run["mode"], max_epochs, machine, curves)


def read_packed(path):
    """Recording of a file in runs/: a line about the problem, and one for each curve."""
    try:
        head, *lines = map(json.loads, path.read_text().splitlines())
        curves, space = [], space_from_json(head["space"])
        for line in lines:
            losses = SIGN[head["mode"]] * np.array(line["values"], float)
            epochs = np.arange(1, len(losses) + 1)
            curves.append(Curve(line["config"], epochs, losses, np.array(line["seconds"], float)))
        return Recording(**{**head, "space": space}, curves=curves)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a file of packed curves: {error!r}") from None


# ---- Forest ----
class Forest:
    """Extremely randomised trees on X (n, d) and Y (n, q)."""

    def __init__(self, X, Y, rng, n_trees=200):
        Y, self.n = (Y - Y.mean(0)) / (Y.std(0) + 1e-12), len(X)
        self.trees = [grow(X, Y, np.arange(self.n), rng) for _ in range(n_trees)]

    def weights(self, x):
        """w (n,), sums to 1: the mean over the trees of an even share for each row in x's leaf."""
        w = np.zeros(self.n)
        for tree in self.trees:
            while isinstance(tree, tuple):
                feature, threshold, left, right = tree
                tree = left if x[feature] <= threshold else right
            w[tree] += 1 / len(tree)
        return w / len(self.trees)


def grow(X, Y, rows, rng):
    """A tree: (feature, threshold, left tree, right tree), or the rows (m,) of a leaf.

    Each feature has one random threshold, and the one that splits best is taken.
    """
    x, y, m = X[rows], Y[rows], len(rows)
    thresholds = rng.uniform(x.min(0), x.max(0))
    left = x <= thresholds  # (m, d)
    n_left, total, part = left.sum(0), y.sum(0), left.T @ y  # (d,), (q,), (d, q)
    # how much each split lowers the sum of squares
    gain = ((part - total * n_left[:, None] / m) ** 2).sum(1) * m
    gain = np.where(n_left < m, gain / (n_left * (m - n_left) + 1e-12), 0)
    k = gain.argmax()
    if gain[k] <= 1e-12:
        return rows
    sides = left[:, k], ~left[:, k]
    return (k, thresholds[k], *(grow(X, Y, rows[side], rng) for side in sides))


# ---- Surrogate ----
class Surrogate:
    """New curves after n recorded ones, with reports at the epochs (E,) of these; see the top."""

    def __init__(self, recording, seed=0, n_trees=200):
        curves, rng = recording.curves, np.random.default_rng(seed)
        self.space, self.max_epochs = recording.space, recording.max_epochs
        self.sign = SIGN[recording.mode]
        self.epochs = np.unique(np.concatenate([curve.epochs for curve in curves]))
        if self.epochs[-1] != self.max_epochs:
            needs = f"a curve to the last epoch, {self.max_epochs}: record with --stopping none"
            raise ValueError(f"the surrogate needs {needs}")
        losses = np.concatenate([curve.losses for curve in curves])
        # log loss: the log of the distance to 1 for accuracies, else to just below the best
        margin = 0.05 * (np.median(losses) - losses.min() + 1e-12)
        is_share = recording.mode == "max" and losses.min() >= -1
        self.bound = -1.0 if is_share else losses.min() - margin
        Z = np.array([np.interp(self.epochs, curve.epochs, curve.losses) for curve in curves])
        n_known = np.array([np.sum(self.epochs <= curve.epochs[-1]) for curve in curves])
        Z = complete(np.log(np.maximum(Z - self.bound, 1e-9)), n_known)  # (n, E)
        distance = (np.log(self.epochs)[:, None] - np.log(self.epochs)) / SMOOTH
        K = np.exp(-0.5 * distance**2)
        self.smooth = Z @ (K / K.sum(1, keepdims=True)).T
        self.residual = Z - self.smooth
        rates = [np.median(curve.rates) for curve in curves]
        self.log_seconds = -np.log(rates)  # (n,) ln seconds of an epoch
        self.jitter = [rate / curve.rates for rate, curve in zip(rates, curves)]  # about 1
        X = np.array([encode(self.space, curve.config) for curve in curves])
        at = np.searchsorted(self.epochs, EPOCHS)
        at = np.unique(at[at < len(self.epochs)])
        self.loss_forest = Forest(X, self.smooth[:, at], rng, n_trees)
        self.seconds_forest = Forest(X, self.log_seconds[:, None], rng, n_trees)
        keys = [config_key(curve.config) for curve in curves]
        self.level_sd = repetition_spread(self.smooth, keys)

    def mean(self, config):
        """Losses (E,) that are expected, without noise."""
        w = self.loss_forest.weights(encode(self.space, config))
        return np.exp(w @ self.smooth) + self.bound

    def sample(self, config, rng):
        """Losses (E,) and seconds (E,) of the reports of one training."""
        x = encode(self.space, config)
        mean, v = self.loss_forest.weights(x) @ self.smooth, self.seconds_forest.weights(x)
        alike = ((self.smooth - mean) ** 2).sum(1).argsort(kind="stable")[:N_ALIKE]
        residual = self.residual[rng.choice(alike)] + self.level_sd * rng.normal()
        jitter = rng.choice(self.jitter[rng.choice(len(v), p=v)], len(self.epochs))
        seconds = np.exp(v @ self.log_seconds) * jitter * np.diff(self.epochs, prepend=0)
        return np.exp(mean + residual) + self.bound, seconds

    def objective(self, config, rng):
        """For experiments.simulated: (seconds, metrics) of each report."""
        for epoch, loss, seconds in zip(self.epochs.tolist(), *self.sample(config, rng)):
            yield seconds, {"epoch": epoch, "loss": loss}


def complete(Z, n_known):
    """Z (n, E), each row of n_known values continued in parallel to the most similar whole row."""
    whole, Z = Z[n_known == Z.shape[1]], Z.copy()
    for row, n in zip(Z, n_known):
        tail = whole[((whole[:, :n] - row[:n]) ** 2).mean(1).argmin()]
        near = slice(max(0, n - 3), n)  # three reports, because one alone is noisy
        row[n:] = tail[n:] + (row[near] - tail[near]).mean()
    return Z


def repetition_spread(smooth, keys):
    """Standard deviation of the level between repetitions of a configuration."""
    rows = [[i for i, other in enumerate(keys) if other == key] for key in dict.fromkeys(keys)]
    levels = [smooth[i].mean(1) for i in rows if len(i) > 1]
    n, squares = sum(map(len, levels)), sum(len(level) * level.var() for level in levels)
    return np.sqrt(squares / (n - len(levels))) if n else 0.0


def quality(recording, n_folds=5, n_trees=100):
    """A line: how well a surrogate predicts the last losses of configurations it has not seen."""
    keys = [config_key(curve.config) for curve in recording.curves]
    order = np.random.default_rng(0).permutation(len(set(keys))) % n_folds
    folds, pairs = dict(zip(dict.fromkeys(keys), order)), []  # pairs: (last loss, prediction)
    for fold in range(n_folds):
        rest = [c for c, key in zip(recording.curves, keys) if folds[key] != fold]
        surrogate = Surrogate(replace(recording, curves=rest), 0, n_trees)
        for curve, key in zip(recording.curves, keys):
            if folds[key] == fold and curve.epochs[-1] == recording.max_epochs:
                pairs.append((curve.losses[-1], surrogate.mean(curve.config)[-1]))
    true, guess = np.transpose(pairs)
    third = true <= np.quantile(true, 1 / 3)
    rank, best = rank_correlation(true, guess), rank_correlation(true[third], guess[third])
    error = np.abs(guess - true).mean()
    text = f"{len(true)} curves held out: rank correlation {rank:.2f}, of the better third"
    return f"{text} {best:.2f}, mean error of the last loss {error:.4f}"


def rank_correlation(a, b):
    """Spearman's: the correlation of the ranks, where ties share the mean of theirs."""
    ranks = [(v[:, None] > v).sum(1) + (v[:, None] >= v).sum(1) for v in (a, b)]
    return np.corrcoef(ranks)[0, 1] if np.ptp(ranks, axis=1).all() else np.nan
