"""Recorded learning curves: read from runs' folders, kept small, and a surrogate that draws new ones from them.

    python -m experiments.curves results/DIR ... experiments/runs/NAME.jsonl      packs finished runs into one small file

The file: a line with space, metric, mode, last epoch and where it was recorded; then a line for each trial with its
configuration, epochs, metric at each, and seconds of each. Failed trials are left out, as they have no whole curve.

The surrogate is no Gaussian process, which would favour a searcher that uses one. A forest of extremely randomised trees
(Geurts, Ernst and Wehenkel 2006) says how near a configuration is to each recorded one: w (n,), the shares of the trees in
whose leaf it lies. Then

    curve = sum_i w_i smooth_i + residual_j + level        in log loss

smooth_i is a recorded curve without its jitter; residual_j the jitter of one, drawn from the five whose curves are most
like the sum, with its own size and correlation over the epochs; level ~ N(0, s^2) is what differs between repetitions in
whole, s from configurations that were recorded more than once. No drawn curve is much better than the best recorded one:
record tuned runs too. A curve that was stopped early is completed first with the tail of the most similar one. Seconds for
each epoch come from a forest of their own in the same way. A drawn curve reports at the epochs at which some recorded
one did.
"""

import csv
import json
import math
import pathlib
from dataclasses import dataclass, replace

import numpy as np

from experiments import command
from hpo.results import SIGN, ResultsError, escape, load, load_run, report_column
from hpo.space import config_key, constants, domains, encode, space_from_json, space_to_json

SMOOTH = 0.12  # width of the smoothing in ln(epoch): at epoch 81 about 10 epochs either way, before epoch 5 none
N_ALIKE = 5  # curves whose jitter a new one may have
CHECKED = (1, 3, 9, 27, 81)  # epochs at which held-out curves are compared, or the next ones with a report
MOST_REPORTS = 5000  # of a curve: the smoothing takes their square in memory


# ---- Recordings ----------------------------------------------------------------------------------------------------------
@dataclass
class Curve:
    """One trial: losses (lower is better) at its epochs, and the seconds that each report took."""

    config: dict
    epochs: np.ndarray  # (k,), increasing
    losses: np.ndarray  # (k,)
    seconds: np.ndarray  # (k,)


@dataclass
class Recording:
    """The curves of one or more runs of the same problem."""

    space: dict
    metric: str
    mode: str
    max_epochs: int
    curves: list
    machine: str = ""

    @property
    def sign(self):
        return SIGN[self.mode]

    @property
    def reported(self):
        """(E,) the epochs at which some curve has a report, increasing."""
        return np.unique(np.concatenate([curve.epochs for curve in self.curves]))

    @property
    def about(self):
        """How many curves there are, in a line that says so when most of them were cut off."""
        n, n_whole = len(self.curves), sum(curve.epochs[-1] == self.max_epochs for curve in self.curves)
        guessed = " alone: the ends of most are guessed, record more with --stopping none" if 2 * n_whole < n else ""
        return f"{n} recorded curves, {n_whole} of them to epoch {self.max_epochs}{guessed}"


def read(paths):
    """Recording of all the folders of runs and packed files; ValueError when one is no such thing, or another problem."""
    recordings = [read_packed(path) if path.is_file() else read_folder(path) for path in map(pathlib.Path, paths)]
    first = recordings[0]
    for path, other in zip(paths, recordings):
        for name in ("metric", "mode", "max_epochs"):
            if getattr(other, name) != getattr(first, name):
                raise ValueError(
                    f"{path}: {name} is {getattr(other, name)!r}, but {getattr(first, name)!r} in {paths[0]}"
                )
        if domains(other.space) != domains(first.space) or same_data(other.space) != same_data(first.space):
            raise ValueError(f"{path}: its space differs from that of {paths[0]}; give runs of one problem")
        if not other.curves:
            raise ValueError(f"{path}: no trial has reported {other.metric}; there is nothing to replay")
        for curve in other.curves:  # the same configuration may lie elsewhere
            curve.config = {**first.space, **{name: curve.config[name] for name in domains(first.space)}}
    machines = dict.fromkeys(other.machine for other in recordings)
    put_on_one_clock(recordings)
    curves = distinct(curve for other in recordings for curve in other.curves)
    return Recording(first.space, first.metric, first.mode, first.max_epochs, curves, "; ".join(machines))


def put_on_one_clock(recordings):
    """Makes the seconds of all what they would have been on the first one's machine.

    By the configurations that it shares with one before: most runs start with the middle of the space. Without any it stays
    as it is.
    """
    known = {}  # configuration -> seconds of an epoch
    for recording in recordings:
        own = {config_key(curve.config): 1 / np.median(epochs_per_second(curve)) for curve in recording.curves}
        factor = math.exp(np.mean([math.log(known[key] / own[key]) for key in known.keys() & own.keys()] or [0.0]))
        for curve in recording.curves:
            curve.seconds = factor * curve.seconds
        known = {key: factor * seconds for key, seconds in own.items()} | known


def epochs_per_second(curve):
    """(k,) before each report of a curve."""
    return np.diff([0, *curve.epochs]) / np.maximum(curve.seconds, 1e-3)


def distinct(curves):
    """The curves, each training once: a run may be given as a folder and packed, and start as another with its seed did."""
    found = {}
    for curve in curves:
        alike = found.setdefault(config_key(curve.config), [])
        for i, other in enumerate(alike):
            n = min(len(curve.losses), len(other.losses))
            if np.allclose(curve.losses[:n], other.losses[:n], rtol=1e-5, atol=0):
                alike[i] = max(curve, other, key=lambda c: len(c.losses))
                break
        else:
            alike.append(curve)
    return [curve for alike in found.values() for curve in alike]


def same_data(space):
    """The constants that must be equal: all but where something lies."""
    return {name: value for name, value in constants(space).items() if not name.endswith("_path")}


def read_folder(folder):
    """Recording of a run's folder."""
    run, trials = load_run(folder), load(folder)
    arguments, machine = run.get("arguments", {}), run.get("machine", {})
    max_epochs = run["space"].get(arguments.get("epochs_name", "epochs"))
    if type(max_epochs) is not int:
        raise ResultsError(f"{folder}: its space has no constant that is the last epoch; nothing to replay")
    words = f"{machine.get('processor')}, {machine.get('cores')} cores, {arguments.get('workers')} workers"
    curves = [trained(curve) for curve in timed_curves(folder, run, trials) if curve.epochs[-1] > 0]
    return Recording(run["space"], run["metric"], run["mode"], max_epochs, curves, words)


def trained(curve):
    """The curve from epoch 1 on: a report of epoch 0, before any training, is one of its first seconds."""
    n = int(curve.epochs[0] < 1)
    seconds = np.append(curve.seconds[: n + 1].sum(), curve.seconds[n + 1 :])
    return replace(curve, epochs=curve.epochs[n:], losses=curve.losses[n:], seconds=seconds)


def timed_curves(folder, run, trials):
    """The Curve of each trial of a run that has a value, with the times of its reports."""
    times, column = [{} for _ in trials], escape(report_column(run["metric"]))
    with open(pathlib.Path(folder) / "reports.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            i = int(row["trial"]) if row["time"] else math.inf  # a torn last line
            if i >= len(trials):  # it has come since the trials were read
                continue
            if int(row["attempt"]) == trials[i].attempt and row[column]:
                times[i][int(row["epoch"])] = float(row["time"])
    curves = []
    for trial in trials:
        if trial.value is not None:
            losses = dict(trial.curve)
            epochs = np.array(sorted(losses))
            seconds = np.diff([trial.started, *(times[trial.id][epoch] for epoch in epochs)])
            curves.append(Curve(trial.config, epochs, np.array([losses[epoch] for epoch in epochs]), seconds))
    return curves


def read_packed(path):
    """Recording of a file that `pack` wrote."""
    try:
        head, *lines = [json.loads(line) for line in path.read_text().splitlines()]
        space, sign = space_from_json(head["space"]), SIGN[head["mode"]]
        curves = [
            Curve(
                {**space, **line["config"]},
                np.array(line.get("epochs") or range(1, len(line["values"]) + 1)),
                sign * np.array(line["values"], float),
                np.array(line["seconds"], float),
            )
            for line in lines
        ]
        return Recording(space, head["metric"], head["mode"], head["max_epochs"], curves, head["machine"])
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(
            f"{path}: not a file of packed curves: {error!r}; expected what experiments.curves writes"
        ) from None


def pack(recording, path):
    """Writes a Recording in about 1 kB for each 81 epochs."""
    head = {"space": space_to_json(recording.space), "metric": recording.metric, "mode": recording.mode}
    lines = [{**head, "max_epochs": recording.max_epochs, "machine": recording.machine}]
    for curve in recording.curves:
        line = {"config": {name: curve.config[name] for name in domains(recording.space)}}
        if list(curve.epochs) != list(range(1, len(curve.epochs) + 1)):
            line["epochs"] = curve.epochs.tolist()
        line["values"] = [float(f"{recording.sign * loss:.6g}") for loss in curve.losses]
        line["seconds"] = [float(f"{seconds:.3g}") for seconds in curve.seconds]
        lines.append(line)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))


# ---- Forest --------------------------------------------------------------------------------------------------------------
class Forest:
    """Extremely randomised trees on X (n, d) and Y (n, q); `weights` is what it is for."""

    def __init__(self, X, Y, rng, n_trees=200):
        self.X, self.Y = X, (Y - Y.mean(0)) / (Y.std(0) + 1e-12)
        self.feature, self.threshold, self.children = [], [], []
        self.leaf_of = np.zeros((n_trees, len(X)), int)  # the node of each tree in which each row ends
        self.roots = np.array([self._grow(np.arange(len(X)), tree, rng) for tree in range(n_trees)])
        self.feature, self.threshold = np.array(self.feature), np.array(self.threshold)
        self.children = np.array(self.children)

    def _grow(self, rows, tree, rng):
        """Index of a new node that holds the rows; every feature is tried at one random threshold, the best is taken."""
        node = len(self.feature)
        for values, empty in ((self.feature, 0), (self.threshold, 0.0), (self.children, (node, node))):
            values.append(empty)
        self.leaf_of[tree, rows] = node
        X, Y, n = self.X[rows], self.Y[rows], len(rows)
        thresholds = rng.uniform(X.min(0), X.max(0))
        left = X <= thresholds  # (n, d)
        n_left = left.sum(0)
        total, part = Y.sum(0), left.T @ Y  # (q,), (d, q)
        # by so much the split lowers the sum of squares; 0 where all rows lie on one side
        gain = ((part - total * n_left[:, None] / n) ** 2).sum(1) * n / (n_left * (n - n_left) + 1e-12)
        gain[np.minimum(n_left, n - n_left) == 0] = 0
        k = gain.argmax()
        if gain[k] > 1e-12:
            self.feature[node], self.threshold[node] = k, thresholds[k]
            self.children[node] = (self._grow(rows[left[:, k]], tree, rng), self._grow(rows[~left[:, k]], tree, rng))
        return node

    def weights(self, x):
        """w (n,), sums to 1: the mean over the trees of an even share for each recorded row in the leaf of x (d,)."""
        node = self.roots
        while True:
            right = x[self.feature[node]] > self.threshold[node]
            below = self.children[node, right.astype(int)]
            if np.array_equal(below, node):
                same = self.leaf_of == node[:, None]
                return (same / same.sum(1, keepdims=True)).mean(0)
            node = below


# ---- Surrogate -----------------------------------------------------------------------------------------------------------
class Surrogate:
    """New curves after n recorded ones; see the module's docstring.

    epochs: (E,) at which the new ones report, the last being recording.max_epochs; default those of the recorded.
    """

    def __init__(self, recording, seed=0, n_trees=200, epochs=None):
        self.space, self.max_epochs, self.sign = recording.space, recording.max_epochs, recording.sign
        ends = np.array([curve.epochs[-1] for curve in recording.curves])
        if not (ends == self.max_epochs).any():
            raise ValueError(
                f"too few curves were recorded to epoch {self.max_epochs}; record more with --stopping none"
            )
        self.epochs = recording.reported if epochs is None else epochs
        if len(self.epochs) > MOST_REPORTS:
            raise ValueError(
                f"curves of {len(self.epochs)} reports, expected at most {MOST_REPORTS}; report less often"
            )
        losses = np.concatenate([curve.losses for curve in recording.curves])
        # log of the distance to a bound below the best: for accuracies 1, so errors; else a little below what was seen
        is_share = recording.mode == "max" and losses.min() >= -1
        self.bound = -1.0 if is_share else losses.min() - 0.05 * (np.median(losses) - losses.min() + 1e-12)
        Z = np.array([self._to_log(np.interp(self.epochs, c.epochs, c.losses)) for c in recording.curves])  # (n, E)
        Z = complete(Z, np.searchsorted(self.epochs, ends, side="right"))
        self.smooth = Z @ smoother(self.epochs).T
        self.residual = Z - self.smooth
        rates = [epochs_per_second(curve) for curve in recording.curves]
        self.log_seconds = np.array([-np.log(np.median(rate)) for rate in rates])  # (n,) ln seconds of an epoch
        self.jitter = [
            1 / (rate * np.exp(mean)) for rate, mean in zip(rates, self.log_seconds)
        ]  # of the seconds, about 1
        X, rng = np.array([encode(self.space, curve.config) for curve in recording.curves]), np.random.default_rng(seed)
        self.quality_forest = Forest(X, self.smooth[:, checked(self.epochs)], rng, n_trees)
        self.seconds_forest = Forest(X, self.log_seconds[:, None], rng, n_trees)
        keys = [config_key(curve.config) for curve in recording.curves]
        self.level_sd, self.n_repetitions = repetition_spread(self.smooth, keys)

    def _to_log(self, losses):
        return np.log(np.maximum(losses - self.bound, 1e-9))

    def mean(self, config):
        """Losses (E,) and the seconds of an epoch that are expected, without noise."""
        x = encode(self.space, config)
        log_loss = self.quality_forest.weights(x) @ self.smooth
        return np.exp(log_loss) + self.bound, np.exp(self.seconds_forest.weights(x) @ self.log_seconds)

    def sample(self, config, rng):
        """Losses (E,) and seconds (E,), of which each report took so many, of one training."""
        x = encode(self.space, config)
        mean = self.quality_forest.weights(x) @ self.smooth
        alike = ((self.smooth - mean) ** 2).sum(1).argsort(kind="stable")[:N_ALIKE]
        residual = self.residual[rng.choice(alike)] + self.level_sd * rng.normal()
        v = self.seconds_forest.weights(x)
        jitter = rng.choice(self.jitter[rng.choice(len(v), p=v)], len(self.epochs))
        losses = np.exp(mean + residual) + self.bound
        return losses, np.exp(v @ self.log_seconds) * jitter * np.diff(self.epochs, prepend=0)

    def objective(self, config, rng):
        """For experiments.simulated: (seconds, metrics) of each report."""
        for epoch, loss, seconds in zip(self.epochs.tolist(), *self.sample(config, rng)):
            yield seconds, {"epoch": epoch, "loss": loss}


def checked(epochs):
    """Indices of CHECKED among epochs (E,), or of the next ones after them."""
    at = np.searchsorted(epochs, CHECKED)
    return np.unique(at[at < len(epochs)])


def smoother(epochs):
    """(E, E) rows of weights: a normal kernel in ln(epoch)."""
    distance = (np.log(epochs)[:, None] - np.log(epochs)) / SMOOTH
    K = np.exp(-0.5 * distance**2)
    return K / K.sum(1, keepdims=True)


def complete(Z, ends):
    """Z (n, E), of whose rows the first ends[i] are known, with the rest in parallel to the most similar whole row."""
    whole = Z[ends == Z.shape[1]]
    Z = Z.copy()
    for i in np.flatnonzero(ends < Z.shape[1]):
        n = ends[i]
        tail = whole[((whole[:, :n] - Z[i, :n]) ** 2).mean(1).argmin()]
        near = slice(max(0, n - 3), n)  # the last three reports, as one alone is noisy
        Z[i, n:] = tail[n:] + (Z[i, near] - tail[near]).mean()
    return Z


def repetition_spread(smooth, keys):
    """(standard deviation of the level between repetitions of a configuration, number of repeated curves)."""
    groups = [[i for i, key in enumerate(keys) if key == this] for this in dict.fromkeys(keys)]
    groups = [smooth[rows].mean(1) for rows in groups if len(rows) > 1]
    n, n_free = sum(map(len, groups)), sum(len(group) - 1 for group in groups)
    return (np.sqrt(sum(((group - group.mean()) ** 2).sum() for group in groups) / n_free) if n else 0.0), n


# ---- How good it is ------------------------------------------------------------------------------------------------------
def ranks(values):
    """Ranks (n,) from 0, ties sharing the mean of theirs."""
    values = np.asarray(values)
    return ((values[:, None] > values).sum(1) + (values[:, None] >= values).sum(1) - 1) / 2


def rank_correlation(a, b):
    """Spearman's."""
    a, b = ranks(a), ranks(b)
    return np.corrcoef(a, b)[0, 1] if a.std() and b.std() else np.nan


def held_out(recording, n_folds=5, seed=0, n_trees=100):
    """Predictions for each curve by a surrogate that has not seen it, nor a repetition: (losses (n, E), seconds (n,))."""
    keys = [config_key(curve.config) for curve in recording.curves]
    distinct = list(dict.fromkeys(keys))
    order = dict(zip(distinct, np.random.default_rng(seed).permutation(len(distinct)) % n_folds))
    predicted = [None] * len(keys)
    for fold in range(n_folds):
        rest = [curve for curve, key in zip(recording.curves, keys) if order[key] != fold]
        if len(rest) == len(keys):
            continue
        surrogate = Surrogate(replace(recording, curves=rest), seed, n_trees, recording.reported)
        for i, curve in enumerate(recording.curves):
            if order[keys[i]] == fold:
                predicted[i] = surrogate.mean(curve.config)
    return np.array([losses for losses, _ in predicted]), np.array([seconds for _, seconds in predicted])


def quality(recording, n_folds=5):
    """Lines of a table: how well held-out curves are predicted, beside the median of all as a prediction."""
    try:
        losses, seconds = held_out(recording, n_folds)
    except ValueError as error:  # the whole is enough, but a part of it is not
        return [f"not checked on held-out curves: {error}"]
    lines = [
        f"held-out curves, {n_folds} folds: rank correlation (of the better third), mean absolute error (of the median)"
    ]
    for at in checked(recording.reported):
        epoch = recording.reported[at]
        known = [i for i, curve in enumerate(recording.curves) if epoch in curve.epochs]
        true = np.array([recording.curves[i].losses[recording.curves[i].epochs == epoch][0] for i in known])
        guess = losses[known, at]
        third = true <= np.quantile(true, 1 / 3)
        error, of_median = np.abs(guess - true).mean(), np.abs(np.median(true) - true).mean()
        both = rank_correlation(guess, true), rank_correlation(guess[third], true[third])
        lines.append(
            f"  epoch {epoch:>3}, {len(known):>4} curves: {both[0]:.2f} ({both[1]:.2f}), {error:.4f} ({of_median:.4f})"
        )
    true = np.array([np.median(curve.seconds / np.diff([0, *curve.epochs])) for curve in recording.curves])
    error, of_median = (np.median(np.abs(guess / true - 1)) for guess in (seconds, np.median(true)))
    correlation = rank_correlation(seconds, true)
    return [*lines, f"  seconds of an epoch: {correlation:.2f}, median relative error {error:.0%} ({of_median:.0%})"]


def main(arguments=None):
    parser = command.parser("curves", __doc__)
    parser.add_argument("sources", nargs="+", metavar="DIR", help="runs' folders, or packed files")
    parser.add_argument("target", type=pathlib.Path, metavar="NAME.jsonl", help="the packed file, a new one")
    args = parser.parse_args(arguments)
    with command.checking(parser):
        if args.target.suffix != ".jsonl":
            raise ValueError(f"{args.target}: expected the file to write last, NAME.jsonl")
        if args.target.exists():  # a recording may be hours of work
            raise ValueError(f"{args.target}: exists; expected a new file to write, last")
        recording = read(args.sources)
    pack(recording, args.target)
    n_epochs = sum(len(curve.epochs) for curve in recording.curves)
    print(f"{args.target}: {recording.about}; {n_epochs} epochs, {args.target.stat().st_size / 1024:.0f} kB")


if __name__ == "__main__":
    command.run("curves")
