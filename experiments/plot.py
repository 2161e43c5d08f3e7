"""Pictures of a run, or the comparison of several; while they run, too. Needs matplotlib.

    python -m experiments.plot results/DIR [--format svg]     DIR/pictures/history.png, ...
    python -m experiments.plot results/A results/B ...        results/compared/compared.png

parameters: the metric against each hyperparameter, on the searcher's scale. Above it, what a
Gaussian process of the trials expects and how unsure it is, as means over random values of the
other hyperparameters. importance: the share of that process's variance over the space that one
hyperparameter explains alone. pairs: the most important ones, with the same mean as a map. Several
runs: those that differ in the seed alone are one method, with its median and quartiles.
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
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
STYLE |= {"svg.fonttype": "none", "text.parse_math": False}  # text stays as it is
STYLE["svg.hashsalt"] = "hpo"  # the same run makes the same file
MINUTES = "minutes, downtime excluded"
N_BOOTSTRAPS = 10
MANY = 500  # from so many marks on, an SVG holds them as an image


# ---- A run ----
class Run:
    """A run, read from its folder. clock: the seconds that it has taken so far."""

    def __init__(self, folder):
        journal = self.journal = Journal(load_run(folder))
        self.folder, self.events = pathlib.Path(folder), list(read_events(folder, journal))
        self.space, self.metric, self.sign = journal.space, journal.metric, journal.sign
        self.trials, self.clock = journal.trials, journal.clock
        self.attempts = [*journal.ended, *(t for t in self.trials if t.ended is None)]
        self.arguments = journal.run["arguments"]
        self.max_epochs = last_epoch(self.space, self.arguments["epochs_name"])
        self.shown = [trial for trial in self.trials if trial.ended is not None or trial.curve]
        self.shown.sort(key=lambda trial: math.inf if trial.ended is None else trial.ended)
        self.losses = np.array([trial.value for trial in self.shown], float)  # NaN for None
        self.failed = [trial for trial in self.shown if trial.status == "failed"]
        valued = [trial for trial in self.shown if trial.value is not None]
        self.ranked = sorted(valued, key=lambda trial: trial.value)  # the best trial first
        self.best = self.ranked[0] if valued else None
        self.mark_size = min(5, max(2, 100 / math.sqrt(len(self.shown) or 1)))

    def best_by_time(self):
        """(seconds, lowest loss so far) arrays, after each report, and now."""
        lost = {(trial.id, trial.attempt) for trial in self.failed}
        reports = [event for event in self.events if "report" in event]
        reports = [event for event in reports if (event["report"], event["attempt"]) not in lost]
        losses = [self.journal.to_loss(event["metrics"].get(self.metric)) for event in reports]
        times = np.array([*(event["at"] for event in reports), self.clock])
        return times, np.fmin.accumulate([*losses, math.nan])

    def best_by_trials(self):
        """(number of trials, lowest loss so far) arrays, in the order in which they ended."""
        return np.arange(1, len(self.shown) + 1), np.fmin.accumulate(self.losses)

    def spans(self):
        """[(start, end, trial id, status)] in seconds of all attempts, by their starts."""
        ends = [self.clock if trial.ended is None else trial.ended for trial in self.attempts]
        return sorted((t.started, end, t.id, t.status) for t, end in zip(self.attempts, ends))


# ---- What a Gaussian process of the trials believes ----
class Belief:
    """The process of ended trials, by default all of a run. model: None where they are too few."""

    def __init__(self, run, trials=None):
        name, seed = run.arguments["searcher"], run.arguments["seed"]
        searcher_class = command.find_searcher(name) if name.startswith("gp:") else GPSearch
        searcher = searcher_class(run.space, seed, run.max_epochs)
        self.space, self.groups = run.space, searcher.groups  # (d,) the hyperparameter of a column
        self.trials = trials or [trial for trial in run.trials if trial.ended is not None]
        self.model = searcher.model(self.trials, np.random.default_rng(seed))

    def predict(self, X):
        """Losses (m,) that X (m, d) should have at the last epoch, and standard deviations (m,)."""
        chunks = map(self.model.predict, np.array_split(X, len(X) // 4000 + 1))  # saves memory
        mu, sigma = map(np.concatenate, zip(*chunks))
        deviation = np.hypot(sigma[:, 0], mu.std(axis=1))
        return self.model.centre + self.model.unit * mu.mean(axis=1), self.model.unit * deviation

    def effect(self, names, n_grid, n_others):
        """Loss and deviation (g, ...) on the grids of some hyperparameters.

        Both are means over random values of the others, which are the same everywhere.
        """
        X = snap(self.space, np.random.default_rng(0).random((n_others, n_dims(self.space))))
        for name in names:
            rows = grid(self.space[name], n_grid)
            X = np.repeat(X[..., None, :], len(rows), axis=-2)  # (n_others, g, ..., d)
            X[..., self.groups == [*domains(self.space)].index(name)] = rows
        found = self.predict(X.reshape(-1, X.shape[-1]))
        return [numbers.reshape(X.shape[:-1]).mean(axis=0) for numbers in found]

    def shares(self):
        """(p + 1,) parts of the loss's variance over the space: main effects, and the rest."""
        X = np.random.default_rng(1).random((1000, n_dims(self.space)))
        total = self.predict(snap(self.space, X))[0].var() or 1.0
        shares = [self.effect([name], 9, 50)[0].var() / total for name in domains(self.space)]
        return [*shares, max(0.0, 1 - sum(shares))]


def importance(run, belief):
    """{name: (10% quantile, median, 90% quantile of its share)} over bootstraps, largest first.

    A bootstrap has a third of the trials less, and so sees less: the median is what it can see.
    """
    rng, n, table = np.random.default_rng(0), len(belief.trials), [belief.shares()]
    for _ in range(N_BOOTSTRAPS):
        rows = np.sort(rng.integers(n, size=n))  # in order: the first trials set the model's scale
        again = Belief(run, [belief.trials[i] for i in rows])
        table += [again.shares()] if again.model else []
    rows = np.quantile(table, (0.1, 0.5, 0.9), axis=0).T.tolist()
    ranked = sorted(zip(domains(run.space), rows), key=lambda row: -row[1][1])
    return dict(ranked) | {"combinations": rows[-1]}


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
    X = np.reshape([domain.encode(value) for value in values], (-1, domain.n_dims))
    return places(domain, X)


def ticks(domain):
    """About five values to be shown of a hyperparameter."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    if isinstance(domain.values, list) or domain.n_values <= 6:
        return domain.values[:: math.ceil(domain.n_values / 6)]
    is_reverse, low, high = domain.kind.startswith("reverse"), domain.low, domain.high
    if is_reverse:
        low, high = 1 - high, 1 - low
    locator = MaxNLocator(4, integer=domain.half > 0)
    if (is_reverse or domain.kind.startswith("log")) and high > 10 * low:
        locator = LogLocator(subs=[1] if high > 100 * low else [1, 2, 5], numticks=5)
    values = [value for value in locator.tick_values(low, high) if low <= value <= high]
    return [1 - value for value in values] if is_reverse else values


def label_axis(axis, letter, name, domain):
    """The x or y axis of a hyperparameter: the searcher's scale, with the user's values."""
    values = ticks(domain)
    texts = [f"{v:.6g}" if isinstance(v, float) else f"{v}"[:12] for v in values]
    turned = {"rotation": 25, "ha": "right"} if letter == "x" and sum(map(len, texts)) > 22 else {}
    axis.set(**{f"{letter}label": name[:30], f"{letter}lim": (-0.04, 1.04)})
    set_ticks = axis.set_xticks if letter == "x" else axis.set_yticks
    set_ticks(places_of(domain, values), texts, **turned)


def style():
    """Context in which pictures are drawn and saved."""
    import matplotlib

    return matplotlib.rc_context(STYLE)


def new_figure(width, height, rows=1, columns=1, **options):
    """A figure and its axes (rows * columns,)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options).ravel()


def add_legend(figure, axis, columns=6):
    entries = axis.get_legend_handles_labels()
    figure.legend(*entries, loc="outside lower center", ncols=columns)


def set_view(axis, run, losses, include=()):
    """Fits an axis to the better losses; returns the worst of these, and two places at the edge.

    include: losses that are to be in view, too, as long as the others keep a fourth of it.
    """
    known = losses[np.isfinite(losses)]
    low, middle, high = np.quantile(known, (0, 0.4, 1)) if len(known) else (0, 0, 1)
    if middle > low:
        high = min(high, low + 3 * (middle - low))
    size = high - low or abs(low) / 10 or 1.0
    low, high = min([low, *include]), max(high, min(low + 4 * size, max(include, default=low)))
    size = max(size, high - low)
    axis.set_ylim(*sorted(run.sign * np.array([low - 0.05 * size, high + 0.2 * size])))
    axis.set_ylabel(run.metric)
    return high, high + 0.09 * size, high + 0.16 * size


def draw_trials(axis, run, x, losses, include=()):
    """Marks of run.shown at x (n,). Poor ones are at the edge, those without a loss beyond them."""
    worst, edge, last_edge = set_view(axis, run, losses, include)
    is_poor, is_shown = losses > worst, losses <= worst
    y = run.sign * np.where(is_shown, losses, np.where(is_poor, edge, last_edge))
    look = {"ls": "", "alpha": 0.8, "ms": run.mark_size, "rasterized": len(x) > MANY}
    triangle = "v" if run.sign < 0 else "^"
    for status, (colour, marker) in STATUSES.items():
        own = np.array([trial.status == status for trial in run.shown])
        if own.any():
            good, poor, label = own & ~is_poor, own & is_poor, f"{own.sum()} {status}"
            axis.plot(x[good], y[good], marker, color=colour, label=label, **look)
            axis.plot(x[poor], y[poor], triangle, color=colour, **look)
    if not is_shown.all():
        label = f"at the edge: {is_poor.sum()} of them worse than {run.sign * worst:.4g}, "
        label += f"{np.isnan(losses).sum()} without a value"
        axis.plot([], [], triangle, color="grey", label=label)


def draw_lines(axis, places, label, **look):
    for i, x in enumerate(places):
        axis.axvline(x, color="grey", ls=":", label=None if i else label, **look)


# ---- Pictures of a run ----
def draw_history(run):
    figure, axes = new_figure(11, 4.4, 1, 2, sharey=True)
    ends = [run.clock if trial.ended is None else trial.ended for trial in run.shown]
    (times, best), (numbers, best_of_n) = run.best_by_time(), run.best_by_trials()
    draw_trials(axes[0], run, np.array(ends) / 60, run.losses)
    draw_trials(axes[1], run, numbers, run.losses)
    axes[0].step(times / 60, run.sign * best, where="post", color="black", label="best so far")
    axes[1].step(numbers, run.sign * best_of_n, where="post", color="black")
    resumed = [event["session"]["at"] / 60 for event in run.events if "session" in event]
    draw_lines(axes[0], resumed, "resumed")
    axes[0].set(xlabel=MINUTES, xlim=(0, None))
    axes[1].set(xlabel="trials, in the order of their ends", ylabel="")
    title = f"{len(run.trials)} trials"
    if run.best:
        best_value = run.journal.to_metric(run.best.value)
        title = f"best {run.metric} {best_value:.6g}, trial {run.best.id}; {title}"
    figure.suptitle(title)
    add_legend(figure, axes[0])
    return figure


def draw_curves(run):
    """None where trials report once: these are no curves."""
    from matplotlib.collections import LineCollection

    curves = [(trial.curve, trial.status) for trial in run.attempts if trial.curve]
    if all(len(curve) < 2 for curve, _ in curves):
        return None
    figure, (axis,) = new_figure(11, 5)
    ends = np.array([trial.curve[-1] if trial.curve else (1, math.nan) for trial in run.shown])
    include = [loss for trial in run.ranked[:5] for _, loss in trial.curve]
    draw_trials(axis, run, *ends.T, include)
    for status, (colour, _) in STATUSES.items():
        lines = [np.array(curve) * (1, run.sign) for curve, of in curves if of == status]
        look = {"lw": 0.8, "alpha": np.clip(50 / (len(lines) or 1), 0.03, 0.5)}
        look["rasterized"] = len(run.shown) > MANY
        axis.add_collection(LineCollection(lines, colors=colour, **look))
    epochs = [epoch for curve, _ in curves for epoch, _ in curve]
    powers = [3**k for k in range(34) if 3**k <= max(epochs)]
    axis.set_xscale("log" if min(epochs) else "symlog")
    axis.set_xticks(powers, powers)
    axis.set_xticks([], minor=True)
    axis.set(xlabel="epoch", title="learning curves, with a mark where each ended")
    if run.arguments["stopping"] in ("auto", "halving", "asha"):
        rungs = [run.arguments["first_rung"] * run.arguments["eta"] ** k for k in range(50)]
        rungs = [rung for rung in rungs if rung < (run.max_epochs or 0)]
        draw_lines(axis, rungs, "rungs", lw=1, zorder=0)
    add_legend(figure, axis)
    return figure


def draw_parameters(run, belief, names):
    n_columns, n_rows = min(len(names), 4), math.ceil(len(names) / 4)
    look = {"height_ratios": [1, 2] * n_rows, "sharey": "row", "subplot_kw": {"visible": False}}
    figure, axes = new_figure(11, 1 + 3.4 * n_rows, 2 * n_rows, n_columns, **look)
    axes = axes.reshape(n_rows, 2, n_columns)
    jitter = np.random.default_rng(0).uniform(-0.3, 0.3, len(run.shown))
    for i, name in enumerate(names):
        domain, (top, axis) = run.space[name], axes[i // 4, :, i % 4]
        if i and i % 4 == 0:  # all effects have the same scale
            top.sharey(axes[0, 0, 0])
        is_choice = isinstance(domain, Choice)
        x = places_of(domain, [trial.config[name] for trial in run.shown])
        draw_trials(axis, run, x + jitter / domain.n_dims if is_choice else x, run.losses)
        label_axis(axis, "x", name, domain)
        axis.set(visible=True, ylabel="" if i % 4 else run.metric)
        if belief.model:
            x, (loss, deviation) = places(domain, grid(domain, 25)), belief.effect([name], 25, 200)
            y = run.sign * loss
            if is_choice:
                top.errorbar(x, y, deviation, fmt="ok", ms=4, capsize=4)
            else:
                top.plot(x, y, "-k")
                top.fill_between(x, y - deviation, y + deviation, color="black", alpha=0.15, lw=0)
            top.set(visible=True, xticks=[], xlim=axis.get_xlim())
            top.set_ylabel("" if i % 4 else "model: mean\nover the others")
    add_legend(figure, axes[0, 1, 0])
    return figure


def draw_importance(shares):
    figure, (axis,) = new_figure(11, 1.2 + 0.3 * len(shares))
    low, share, high = np.transpose(list(shares.values()))
    y = -np.arange(len(shares))
    axis.barh(y, share, color=[COLOURS[0]] * (len(shares) - 1) + ["#999999"])
    axis.hlines(y, low, high, color="black")
    axis.set_yticks(y, [name[:30] for name in shares])
    axis.set(xlabel="share of the model's variance over the space", xlim=(0, None))
    axis.set_title(f"median, and 10% to 90%, of {N_BOOTSTRAPS} bootstraps of the trials")
    return figure


def draw_pairs(run, belief, pairs):
    figure, axes = new_figure(3.9 * len(pairs) + 0.8, 4.2, 1, len(pairs))
    maps = [run.sign * belief.effect(pair, 20, 50)[0] for pair in pairs]
    scale = {"vmin": np.min([m.min() for m in maps]), "vmax": np.max([m.max() for m in maps])}
    scale["cmap"] = "cividis" if run.sign < 0 else "cividis_r"  # bright is good
    red, look = STATUSES["failed"][0], {"ms": run.mark_size, "rasterized": len(run.shown) > MANY}
    others = [trial for trial in run.shown if trial.status != "failed"]
    marks = [  # the last ones are on top
        (others, "o", {**look, "color": "white", "mec": "black", "label": "trials"}),
        (run.failed, "x", {**look, "color": red, "label": "failed" if run.failed else None}),
        ([run.best], "*", {"ms": 15, "color": red, "mec": "white", "label": "best"}),
    ]
    for axis, pair, values in zip(axes, pairs, maps):
        parts = [run.space[name] for name in pair]
        x, y = (places(domain, grid(domain, 20)) for domain in parts)
        mesh = axis.pcolormesh(x, y, values.T, shading="nearest", rasterized=True, **scale)
        for letter, name, domain in zip("xy", pair, parts):
            label_axis(axis, letter, name, domain)
        for trials, marker, look in marks:
            x, y = (places_of(d, [t.config[n] for t in trials]) for n, d in zip(pair, parts))
            axis.plot(x, y, marker, **look)
    figure.colorbar(mesh, ax=axes, label=f"{run.metric}, model's mean")
    add_legend(figure, axes[0])
    return figure


def draw_workers(run):
    spans, free, rows = run.spans(), [], []
    for start, end, *_ in spans:
        row = next((row for row, at in enumerate(free) if at <= start), len(free))
        free[row : row + 1] = [end]
        rows.append(row)
    figure, (axis,) = new_figure(11, 1.6 + 0.35 * len(free))
    starts, ends, _, statuses = zip(*spans)
    starts, lengths = np.array(starts) / 60, np.subtract(ends, starts) / 60
    colours = [STATUSES[status][0] for status in statuses]
    look = {"ec": "white", "lw": min(0.5, 100 / len(spans)), "alpha": 0.75}
    look["rasterized"] = len(spans) > MANY
    axis.barh(rows, lengths, left=starts, color=colours, **look)
    for status, n in Counter(statuses).items():
        axis.plot([], [], "s", ms=9, color=STATUSES[status][0], label=f"{n} {status}")
    busy = 60 * lengths.sum() / (len(free) * run.clock or 1)
    axis.set_yticks(range(len(free)), range(1, len(free) + 1))
    axis.set(xlim=(0, run.clock / 60 or 1), xlabel=MINUTES, ylabel="worker")
    axis.set_title(f"the workers trained {busy:.0%} of the time")
    add_legend(figure, axis)
    return figure


def draw_run(run, belief):
    """{name: figure} of a run in which a trial has started."""
    figures = {"history": draw_history(run), "curves": draw_curves(run)}
    names = [name for name, domain in domains(run.space).items() if domain.n_values > 1]
    if belief.model:
        shares = importance(run, belief)
        names = [name for name in shares if name in names]
    figures["parameters"] = draw_parameters(run, belief, names[:8]) if names else None
    if belief.model:
        shown = [*names[:20], "combinations"]
        figures["importance"] = draw_importance({name: shares[name] for name in shown})
        pairs = list(itertools.combinations(names[:3], 2))
        figures["pairs"] = draw_pairs(run, belief, pairs) if pairs else None
    figures["workers"] = draw_workers(run)
    return {name: figure for name, figure in figures.items() if figure}


# ---- Comparison of runs ----
def by_method(runs):
    """{name: [Run]}: the arguments in which the runs differ, but for the seed."""
    names = dict.fromkeys(name for run in runs for name in run.arguments if name != "seed")
    differing = [n for n in names if len({str(run.arguments.get(n)) for run in runs}) > 1]
    methods = {}
    for run in runs:
        parts = [f"{name}={run.arguments.get(name)}" for name in differing or ["searcher"]]
        methods.setdefault(", ".join(parts), []).append(run)
    return methods


def on_one_axis(curves):
    """x (n,) and table (runs, n) of step curves (x, y), from where all have begun to the first end.

    Those without a finite y are left out.
    """
    curves = [(x[np.isfinite(y)], y[np.isfinite(y)]) for x, y in curves if np.isfinite(y).any()]
    x = np.unique(np.concatenate([x for x, _ in curves] or [[]]))
    for own, _ in curves:
        x = x[(own[0] <= x) & (x <= own[-1])]
    rows = [y[np.searchsorted(own, x, side="right") - 1] for own, y in curves]
    return x, np.array(rows).reshape(-1, len(x))


def draw_comparison(methods):
    figure, axes = new_figure(11, 4.8, 1, 2, sharey=True)
    for axis, curve, scale in zip(axes, (Run.best_by_time, Run.best_by_trials), (60, 1)):
        in_view = []
        for colour, (name, runs) in zip(itertools.cycle(COLOURS), methods.items()):
            x, table = on_one_axis([curve(run) for run in runs])
            if len(x):
                low, middle, high = runs[0].sign * np.quantile(table, (0.25, 0.5, 0.75), axis=0)
                label = f"{name}, runs: {len(table)}"
                axis.step(x / scale, middle, where="post", color=colour, label=label)
                look = {"step": "post", "color": colour, "alpha": 0.2, "lw": 0}
                axis.fill_between(x / scale, low, high, **look)
            in_view.append(table.ravel())
        set_view(axis, runs[0], np.concatenate(in_view))
    axes[0].set(xlabel=MINUTES, ylabel=f"best {runs[0].metric} so far")
    axes[1].set(xlabel="trials that have ended", ylabel="")
    figure.suptitle("median and quartiles of each method's runs")
    add_legend(figure, axes[0], 1)
    return figure


def print_table(methods):
    """best: median [lowest, highest] of the runs; trials, failed and hours: their means."""
    print("runs           best [lowest, highest]  trials  failed   hours  method")
    for name, runs in methods.items():
        values = [run.journal.to_metric(run.best.value) for run in runs if run.best] or [math.nan]
        best = f"{np.median(values):.6g} [{min(values):.6g}, {max(values):.6g}]"
        counts = [(len(run.shown), len(run.failed), run.clock / 3600) for run in runs]
        means = " ".join(f"{mean:7.4g}" for mean in np.mean(counts, axis=0))
        print(f"{len(runs):4} {best:>32} {means}  {name}")


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
            methods, folder = by_method(runs), pathlib.Path("results/compared")
            print_table(methods)
            figures = {"compared": draw_comparison(methods)}
        else:
            folder, figures = first.folder / "pictures", draw_run(first, Belief(first))
        folder = args.results or folder
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            path = folder / f"{name}.{args.format}"
            metadata = {"Date": None} if args.format == "svg" else {}
            figure.savefig(path, dpi=100, metadata=metadata)
            print(path)


if __name__ == "__main__":
    command.run("plot")
