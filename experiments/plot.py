"""Pictures of a run, or the comparison of several; while they run, too. Needs matplotlib.

    python -m experiments.plot results/DIR [--format svg]     DIR/pictures/history.png, ...
    python -m experiments.plot results/A results/B ...        results/compared/compared.png

parameters: the metric against each hyperparameter, on the searcher's scale. Above it, what a
Gaussian process of the trials expects and how unsure it is, as means over random values of the
other hyperparameters. importance: the share of that process's variance over the space that one
hyperparameter explains alone. pairs: the most important ones, with the same mean as a map.
"""

import itertools
import math
import pathlib
from collections import Counter

import numpy as np

from experiments import command
from hpo.journal import Journal, load_run, read_events
from hpo.searchers import GPSearch
from hpo.space import Choice, domains, n_dims, snap
from hpo.tuner import last_epoch

# Colours of Okabe and Ito (2008), which the colour-blind can tell apart
STATUSES = {
    "done": ("#0072B2", "o"), "stopped": ("#E69F00", "s"), "timeout": ("#CC79A7", "D"),
    "running": ("#56B4E9", ">"), "interrupted": ("#999999", "P"), "failed": ("#D55E00", "x"),
}  # fmt: skip
COLOURS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"
MINUTES = "minutes, downtime excluded"
STYLE = {
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
    "svg.fonttype": "none", "svg.hashsalt": "hpo", "text.parse_math": False,
}  # fmt: skip


# ---- A run ----
class Run:
    """A run, read from its folder. clock: the seconds that it has taken so far."""

    def __init__(self, folder):
        journal = self.journal = Journal(load_run(folder))
        self.folder, self.events = pathlib.Path(folder), list(read_events(folder, journal))
        self.space, self.metric, self.sign = journal.space, journal.metric, journal.sign
        self.trials, self.clock = journal.trials, journal.clock
        self.arguments = journal.run["arguments"]
        self.shown = [trial for trial in self.trials if trial.ended is not None or trial.curve]
        self.shown.sort(key=lambda trial: math.inf if trial.ended is None else trial.ended)
        self.losses = np.array([trial.value for trial in self.shown], float)  # NaN for None
        valued = [trial for trial in self.shown if trial.value is not None]
        self.best = min(valued, key=lambda trial: trial.value, default=None)

    def best_by_time(self):
        """(seconds, lowest loss so far) arrays, after each report, and now."""
        points = []
        for event in self.events:
            trial = self.trials[event["report"]] if "report" in event else None
            if trial and (trial.status != "failed" or event["attempt"] < trial.attempt):
                loss = self.journal.to_loss(event["metrics"].get(self.metric))
                points.append((event["at"], loss))
        times, losses = np.array([*points, (self.clock, math.nan)]).T
        return times, np.fmin.accumulate(losses)

    def best_by_trials(self):
        """(number of trials, lowest loss so far) arrays, in the order in which they ended."""
        return np.arange(1, len(self.shown) + 1), np.fmin.accumulate(self.losses)


# ---- What a Gaussian process of the trials believes ----
class Belief:
    """The process of the ended trials of a run. model: None where they are too few."""

    def __init__(self, run):
        seed, self.space = run.arguments["seed"], run.space
        searcher = GPSearch(run.space, seed, last_epoch(run.space, run.arguments["epochs_name"]))
        trials = [trial for trial in run.trials if trial.ended is not None]
        self.model = searcher.model(trials, np.random.default_rng(seed))

    def predict(self, X):
        """Losses (m,) that X (m, d) should have at the last epoch, and standard deviations (m,)."""
        mu, sigma = self.model.predict(X)
        deviation = np.hypot(sigma[:, 0], mu.std(axis=1))
        return self.model.centre + self.model.unit * mu.mean(axis=1), self.model.unit * deviation

    def effect(self, names, n_grid, n_others):
        """Loss and deviation (g, ...) on the grids of some hyperparameters.

        Both are means over random values of the others, which are the same everywhere.
        """
        parts = domains(self.space)
        ends = dict(zip(parts, itertools.accumulate(domain.n_dims for domain in parts.values())))
        X = snap(self.space, np.random.default_rng(0).random((n_others, n_dims(self.space))))
        for name in names:
            rows = grid(parts[name], n_grid)
            X = np.repeat(X[..., None, :], len(rows), axis=-2)  # (n_others, g, ..., d)
            X[..., ends[name] - parts[name].n_dims : ends[name]] = rows
        flat = X.reshape(-1, X.shape[-1])
        chunks = [self.predict(rows) for rows in np.array_split(flat, len(flat) // 4000 + 1)]
        loss, deviation = (np.concatenate(chunk).reshape(X.shape[:-1]) for chunk in zip(*chunks))
        return loss.mean(axis=0), deviation.mean(axis=0)

    def shares(self):
        """{name: its part of the loss's variance over the space}, the largest first; and the rest,
        "combinations"."""
        X = np.random.default_rng(1).random((1000, n_dims(self.space)))
        total = self.predict(snap(self.space, X))[0].var() or 1.0
        shares = {n: self.effect([n], 9, 50)[0].var() / total for n in domains(self.space)}
        ranked = dict(sorted(shares.items(), key=lambda share: -share[1]))
        return ranked | {"combinations": max(0.0, 1 - sum(shares.values()))}


# ---- Axes and marks ----
def grid(domain, n):
    """Encoded values (g, n_dims) of a hyperparameter, g <= n but for a choice."""
    if isinstance(domain, Choice):
        return np.eye(domain.n_dims)
    return np.unique(snap({"": domain}, np.linspace(0, 1, n)[:, None]), axis=0)


def places(domain, X):
    """Positions (n,) on an axis from 0 to 1 of encoded values X (n, n_dims)."""
    return (X.argmax(axis=1) + 0.5) / domain.n_dims if isinstance(domain, Choice) else X[:, 0]


def places_of(domain, values):
    X = np.array([domain.encode(value) for value in values])
    return places(domain, X.reshape(-1, domain.n_dims))


def shorten(text, n):
    return text if len(text) <= n else f"{text[: n - 2]}.."


def label_axis(axis, letter, name, domain):
    """The x or y axis of a hyperparameter: the searcher's scale, with five of the user's values."""
    X = grid(domain, 5)
    values = [domain.decode(x) for x in X]
    texts = [shorten(f"{v:.2g}" if isinstance(v, float) else f"{v}", 12) for v in values]
    turned = {"rotation": 25, "ha": "right"} if letter == "x" and sum(map(len, texts)) > 22 else {}
    axis.set(**{f"{letter}label": shorten(name, 30), f"{letter}lim": (-0.04, 1.04)})
    set_ticks = axis.set_xticks if letter == "x" else axis.set_yticks
    set_ticks(places(domain, X), texts, **turned)


def style():
    """Context in which pictures are drawn and saved."""
    try:
        import matplotlib
    except ImportError:
        raise command.Failed("pictures need matplotlib: pip install matplotlib") from None
    return matplotlib.rc_context(STYLE)


def new_figure(width, height, rows=1, columns=1, **options):
    """A figure and its axes (rows * columns,)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options).ravel()


def add_legend(figure, axis, columns=6):
    entries = axis.get_legend_handles_labels()
    figure.legend(*entries, loc="outside lower center", ncols=columns)


def size_of(n):
    """The size of n marks: smaller ones where there are many."""
    return min(5, max(2, 100 / math.sqrt(n or 1)))


def set_view(axis, run, losses):
    """Fits an axis to the better losses; returns the worst in view, and a place at the edge."""
    known = losses[np.isfinite(losses)]
    low, middle, high = np.quantile(known, (0, 0.4, 1)) if len(known) else (0, 0, 1)
    high = min(high, low + 3 * (middle - low)) if middle > low else high
    size = high - low or abs(low) / 10 or 1.0
    axis.set_ylim(*sorted(run.sign * np.array([low - 0.05 * size, high + 0.2 * size])))
    axis.set_ylabel(run.metric)
    return high, run.sign * (high + 0.12 * size)


def draw_trials(axis, run, x, losses, view=None):
    """Marks of run.shown at x (n,). Poor ones, and those without a loss (NaN), are at the edge.

    view: the losses to which the axis is fitted; by default the same.
    """
    worst, edge = set_view(axis, run, losses if view is None else view)
    is_in_view = losses <= worst
    y = np.where(is_in_view, run.sign * losses, edge)
    look = {"ls": "", "alpha": 0.8, "ms": size_of(len(x))}
    for status, (colour, marker) in STATUSES.items():
        own = np.array([trial.status == status for trial in run.shown])
        if own.any():
            label = f"{own.sum()} {status}"
            axis.plot(x[own], y[own], marker, color=colour, label=label, **look)
    if n_others := np.sum(~is_in_view):
        label = f"{n_others} worse than {run.sign * worst:.4g}, or without a value"
        axis.axhline(edge, color="#e6e6e6", lw=9, zorder=0, label=label)


# ---- Pictures of a run ----
def draw_history(run):
    figure, axes = new_figure(11, 4.4, 1, 2, sharey=True)
    ends = [run.clock if trial.ended is None else trial.ended for trial in run.shown]
    (times, best), bests = run.best_by_time(), run.best_by_trials()
    draw_trials(axes[0], run, np.array(ends) / 60, run.losses)
    draw_trials(axes[1], run, bests[0], run.losses)
    for axis, (x, y) in zip(axes, [(times / 60, best), bests]):
        axis.step(x, run.sign * y, where="post", color="black", label="best so far")
    if resumed := [event["session"]["at"] / 60 for event in run.events if "session" in event]:
        axes[0].vlines(resumed, *axes[0].get_ylim(), color="grey", ls=":", label="resumed")
    axes[0].set(xlabel=MINUTES, xlim=(0, None))
    axes[1].set(xlabel="trials, in the order of their ends", ylabel="")
    best = run.best and f"{run.journal.to_metric(run.best.value):.6g}, trial {run.best.id}"
    figure.suptitle(f"best {run.metric}: {best or 'none so far'}; {len(run.trials)} trials")
    add_legend(figure, axes[0])
    return figure


def draw_curves(run):
    """None where trials report once: these are no curves."""
    from matplotlib.collections import LineCollection

    curves = [(trial.curve, trial.status) for trial in run.shown if trial.curve]
    curves += [(c, "interrupted") for trial in run.trials for c in trial.earlier if c]
    if all(len(curve) < 2 for curve, _ in curves):
        return None
    figure, (axis,) = new_figure(11, 5)
    ends = np.array([trial.curve[-1] if trial.curve else (1, math.nan) for trial in run.shown])
    epochs, losses = np.concatenate([curve for curve, _ in curves]).T
    draw_trials(axis, run, *ends.T, losses)
    for status, (colour, _) in STATUSES.items():
        lines = [np.array(curve) * (1, run.sign) for curve, of in curves if of == status]
        axis.add_collection(LineCollection(lines, colors=colour, lw=0.8, alpha=0.3))
    powers = [3**k for k in range(34) if 3**k <= epochs.max()]
    axis.set_xscale("log" if epochs.min() else "symlog")
    axis.set_xticks(powers, powers)
    axis.set_xticks([], minor=True)
    axis.set(xlabel="epoch", title="learning curves, with a mark where each ended")
    add_legend(figure, axis)
    return figure


def draw_parameters(run, belief, names):
    columns, n_rows = min(len(names), 4), math.ceil(len(names) / 4)
    look = {"height_ratios": [1, 2] * n_rows, "subplot_kw": {"visible": False}}
    figure, axes = new_figure(11, 1 + 3.4 * n_rows, 2 * n_rows, columns, **look)
    axes = axes.reshape(n_rows, 2, columns)
    jitter = np.random.default_rng(0).uniform(-0.3, 0.3, len(run.shown))
    for i, name in enumerate(names):
        domain, (top, axis) = run.space[name], axes[i // 4, :, i % 4]
        width = 1 / domain.n_dims if isinstance(domain, Choice) else 0  # of a category's strip
        x = places_of(domain, [trial.config[name] for trial in run.shown]) + width * jitter
        draw_trials(axis, run, x, run.losses)
        label_axis(axis, "x", name, domain)
        axis.set(visible=True, ylabel="" if i % 4 else run.metric)
        if belief.model:
            x, (loss, deviation) = places(domain, grid(domain, 25)), belief.effect([name], 25, 200)
            line = "ok" if width else "-k"
            top.errorbar(x, run.sign * loss, deviation, fmt=line, ms=4, elinewidth=0.8)
            top.sharey(axes[0, 0, 0]) if i else None
            top.set(visible=True, xticks=[], xlim=axis.get_xlim())
            top.set_ylabel("" if i % 4 else "model: mean\nover the others")
        for panel in (top, axis) if i % 4 else ():
            panel.tick_params(labelleft=False)
    add_legend(figure, axes[0, 1, 0])
    return figure


def draw_importance(shares):
    figure, (axis,) = new_figure(11, 1.2 + 0.3 * len(shares))
    colours = [COLOURS[0]] * (len(shares) - 1) + ["#999999"]
    axis.barh([shorten(name, 30) for name in shares], list(shares.values()), color=colours)
    axis.invert_yaxis()
    axis.set(xlabel="share of the model's variance over the space")
    return figure


def draw_pairs(run, belief, pairs):
    figure, axes = new_figure(3.9 * len(pairs) + 0.8, 4.2, 1, len(pairs))
    maps = [run.sign * belief.effect(pair, 20, 50)[0] for pair in pairs]
    scale = {"vmin": np.min([m.min() for m in maps]), "vmax": np.max([m.max() for m in maps])}
    scale["cmap"] = "cividis" if run.sign < 0 else "cividis_r"  # bright is good
    small = size_of(len(run.shown))
    marks = [  # the last one is on top
        (run.shown, "o", {"color": "white", "mec": "black", "label": "trials", "ms": small}),
        ([run.best], "*", {"color": "#D55E00", "mec": "white", "label": "best", "ms": 15}),
    ]
    for axis, pair, values in zip(axes, pairs, maps):
        parts = [run.space[name] for name in pair]
        x, y = (places(domain, grid(domain, 20)) for domain in parts)
        mesh = axis.pcolormesh(x, y, values.T, shading="nearest", rasterized=True, **scale)
        for letter, name, domain in zip("xy", pair, parts):
            label_axis(axis, letter, name, domain)
        for trials, marker, look in marks:
            x, y = (places_of(d, [t.config[n] for t in trials]) for n, d in zip(pair, parts))
            axis.plot(x, y, marker, ls="", **look)
    figure.colorbar(mesh, ax=axes, label=f"{run.metric}, model's mean")
    add_legend(figure, axes[0])
    return figure


def draw_workers(run):
    free, rows = [], []
    spans = sorted((t.started, t.ended or run.clock, t.id, t.status) for t in run.trials)
    for start, end, *_ in spans:
        row = next((row for row, at in enumerate(free) if at <= start), len(free))
        free[row : row + 1] = [end]
        rows.append(row)
    figure, (axis,) = new_figure(11, 1.6 + 0.35 * len(free))
    starts, ends, ids, statuses = zip(*spans)
    starts, lengths = np.array(starts) / 60, np.subtract(ends, starts) / 60
    colours = [STATUSES[status][0] for status in statuses]
    axis.barh(rows, lengths, left=starts, color=colours, alpha=0.75, ec="white", lw=0.2)
    for status, n in Counter(statuses).items():
        axis.plot([], [], "s", ms=9, color=STATUSES[status][0], label=f"{n} {status}")
    for row, start, length, i in zip(rows, starts, lengths, ids):
        if length > 0.025 * run.clock / 60:
            axis.text(start + length / 2, row, i, ha="center", va="center", size=8)
    axis.set_yticks(range(len(free)), range(1, len(free) + 1))
    axis.set(xlim=(0, run.clock / 60 or 1), ylabel="worker", xlabel=f"{MINUTES}; with trials")
    add_legend(figure, axis)
    return figure


def draw_run(run, belief):
    """{name: figure} of a run in which a trial has started."""
    figures = {"history": draw_history(run), "curves": draw_curves(run)}
    names = [name for name, domain in domains(run.space).items() if domain.n_values > 1]
    if belief.model:
        shares = belief.shares()
        names = [name for name in shares if name in names]
        figures["importance"] = draw_importance({n: shares[n] for n in [*names, "combinations"]})
        if pairs := list(itertools.combinations(names[:3], 2)):
            figures["pairs"] = draw_pairs(run, belief, pairs)
    figures["parameters"] = draw_parameters(run, belief, names[:8]) if names else None
    figures["workers"] = draw_workers(run)
    return {name: figure for name, figure in figures.items() if figure}


# ---- Comparison of runs ----
def draw_comparison(methods):
    """methods: {name: [Run]}; each has a colour."""
    runs = [run for own in methods.values() for run in own]
    figure, axes = new_figure(11, 4.8, 1, 2, sharey=True)
    for axis, curve, scale in zip(axes, (Run.best_by_time, Run.best_by_trials), (60, 1)):
        for colour, (name, own) in zip(itertools.cycle(COLOURS), methods.items()):
            for i, (x, losses) in enumerate(map(curve, own)):
                look = {"color": colour, "label": None if i else name}
                axis.step(x / scale, runs[0].sign * losses, where="post", lw=1, **look)
        set_view(axis, runs[0], np.concatenate([curve(run)[1] for run in runs]))
    axes[0].set(xlabel=MINUTES, ylabel=f"best {runs[0].metric} so far")
    axes[1].set(xlabel="trials that have ended", ylabel="")
    add_legend(figure, axes[0], 1)
    return figure


# ---- Command line ----
def main(arguments=None):
    parser = command.parser("plot", __doc__)
    parser.add_argument("folders", nargs="+", metavar="DIR", help="the folder of a run")
    parser.add_argument("--format", choices=("png", "svg"), default="png")
    parser.add_argument("--results", type=pathlib.Path, metavar="FOLDER", help="where to write")
    args = parser.parse_args(arguments)
    with command.checking(parser), style():
        first, *others = runs = [Run(folder) for folder in args.folders]
        for run in runs:
            if not run.trials:
                raise ValueError(f"{run.folder}: no trial has started, nothing to draw yet")
            if (run.metric, run.sign) != (first.metric, first.sign):
                raise ValueError(f"{run.folder}: expected {first.metric}, got {run.metric}")
        if others:
            folder = pathlib.Path("results/compared")
            figures = {"compared": draw_comparison({str(run.folder): [run] for run in runs})}
        else:
            folder, figures = first.folder / "pictures", draw_run(first, Belief(first))
        folder = args.results or folder
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            path = folder / f"{name}.{args.format}"
            figure.savefig(path, dpi=100, metadata={"Date": None} if args.format == "svg" else {})
            print(path)


if __name__ == "__main__":
    command.run("plot")
