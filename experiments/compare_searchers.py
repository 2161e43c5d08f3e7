"""Compares searchers over problems and seeds, by the tuner's own loop on a simulated clock.

    python -m experiments.compare_searchers                  ours, and every peer that is installed
    python -m experiments.compare_searchers --searcher gp --searcher my_gp.py:MySearcher --quick
    python -m experiments.compare_searchers --half report --searcher gp --searcher ax

A run is a searcher, a problem and a seed, and becomes a row of RESULTS/<searcher>.csv. What has a
row there or in experiments/compared/ is not run again until the searcher's file changes. The seed
decides durations and noise, the same for every searcher. Normalised regret after n trials have
ended: (lowest true loss so far - optimum) / (median true loss of random configurations - optimum),
clipped to [0, 1]; `chosen` is that of the trial with the lowest observed loss. Means are over the
seeds of a problem, then over problems. Intervals: 95%, bootstrap over the runs of each problem.

With --curves trials report every epoch, and a method is a searcher, a rule and a first rung. It has
the time in which 20 random configurations would train to the last epoch. Regrets are those of the
true last loss of the configuration that is the best so far, by the lowest loss that it reported.
"""

import functools
import hashlib
import itertools
import math
import pathlib
import zlib

import numpy as np

import hpo.searchers
import hpo.stopping
from experiments import command, peers
from experiments.families import CURVES, N_EPOCHS, ONCE
from experiments.problems import PROBLEMS, find, names
from experiments.simulated import simulate, simulate_until
from hpo.space import sample
from hpo.trial import n_threads

COMPARED = pathlib.Path(__file__).parent / "compared"
EACH = " + "  # between searcher, rule and first rung in the name of a method, of --curves
KEY = {"searcher": str, "version": str, "problem": str, "seed": int, "workers": int, "trials": int}
# true losses after each third of the trials: 20, 40 and 60 of 60; mean seconds of a suggestion
BEST, CHOSEN = [[f"{kind}_{third}" for third in (1, 2, 3)] for kind in ("best", "chosen")]
COLUMNS = KEY | dict.fromkeys([*BEST, *CHOSEN, "seconds"], float)
PARTS = (0.1, 0.25, 0.5, 1.0)  # of the time of --curves, at which it looks
TAKEN = [f"chosen_{100 * part:.0f}" for part in PARTS]
CURVE_COLUMNS = KEY | dict.fromkeys([*TAKEN, "best_100", "seconds"], float)


# ---- One run ----
def is_peer(name):
    return name.split(EACH)[0] in peers.PEERS


def version_of(name):
    """The peer's version, None if it is not installed; or a hash of our files."""
    if is_peer(name):
        return peers.version(name.split(EACH)[0])
    for part, find_it in zip(name.split(EACH), (command.find_searcher, command.find_rule)):
        find_it(part)  # or a ValueError
    own = [part.rpartition(":")[0] for part in name.split(EACH) if ".py:" in part]
    paths = [hpo.searchers.__file__, hpo.stopping.__file__, *own]
    contents = b"".join(pathlib.Path(path).read_bytes() for path in paths)
    return hashlib.sha1(contents).hexdigest()[:10]


def thirds(n_trials):
    return [math.ceil(n_trials * k / 3) for k in (1, 2, 3)]


def run(name, version, problem_name, seed, n_workers, n_trials):
    """The row of a run."""
    problem, (searcher, *method) = find(problem_name), name.split(EACH)
    max_epochs = N_EPOCHS if method else None
    settings = {"n_workers": n_workers, "max_epochs": max_epochs}
    settings["seed"] = zlib.crc32(problem_name.encode()) + seed
    if is_peer(name):
        settings["start"] = ()  # it has first trials of its own; ours begin in the middle
        searcher = peers.Peer(searcher, problem.space, seed)
    else:
        searcher = command.find_searcher(searcher)(problem.space, seed, max_epochs)
    if method:
        settings["rule"] = command.find_rule(method[0], int(method[1]))
        seconds = n_trials * full_seconds(problem_name) / n_workers
        losses, trials = run_curves(problem, searcher, seconds, **settings)
    else:
        losses, trials = run_trials(problem, searcher, n_trials, **settings)
    seconds = np.mean([trial.suggest_seconds for trial in trials if trial.origin != "start"])
    return [name, version, problem_name, seed, n_workers, n_trials, *losses, f"{seconds:.4g}"]


def run_trials(problem, searcher, n_trials, **settings):
    """(the losses of COLUMNS, the trials)."""

    def objective(config, rng):
        seconds = rng.lognormal(0, 0.5)  # drawn first: the same for every searcher
        yield seconds, {"loss": problem.evaluate(config, rng)}

    trials = simulate(searcher, problem.space, objective, n_trials=n_trials, **settings)
    ended = sorted(trials, key=lambda trial: trial.ended)
    seen = [math.inf if trial.value is None else trial.value for trial in ended]
    true = [math.inf if t.value is None else problem.true_loss(t.config) for t in ended]
    best = [min(true[:n]) for n in thirds(n_trials)]
    chosen = [true[np.argmin(seen[:n])] for n in thirds(n_trials)]
    return best + chosen, trials


@functools.cache
def full_seconds(problem_name):
    """Median seconds of random configurations that are trained to the last epoch."""
    problem, rng = find(problem_name), np.random.default_rng(0)
    curves = [problem.curve(sample(problem.space, rng), rng) for _ in range(50)]
    return np.median([sum(seconds for seconds, _ in curve) for curve in curves])


def run_curves(problem, searcher, seconds, **settings):
    """(the losses of CURVE_COLUMNS, the trials): true last losses of configurations."""

    def objective(config, rng):
        for epoch_seconds, loss in problem.curve(config, rng):
            yield epoch_seconds, {"loss": loss}

    times = [part * seconds for part in PARTS]
    found, trials = simulate_until(times, searcher, problem.space, objective, **settings)
    chosen = [problem.true_loss(best[1]) if best else math.inf for best in found]
    tried = [problem.true_loss(trial.config) for trial in trials if trial.value is not None]
    losses = np.array([*chosen, np.nanmin([math.inf, *tried])])
    return np.where(np.isnan(losses), math.inf, losses).tolist(), trials


# ---- Results on disk ----
def results_file(folder, name):
    return folder / f"{name.replace(EACH, '.').replace(':', '.').replace('/', '.')}.csv"


def read_runs(folder, versions, workers, trials):
    """{searcher: {(problem, seed): row}}; a peer's runs count whatever their version."""
    runs = {}
    for name, version in versions.items():
        wanted = {"searcher": name, "workers": workers, "trials": trials}
        wanted |= {} if is_peer(name) else {"version": version}
        columns = CURVE_COLUMNS if EACH in name else COLUMNS
        rows = command.read_rows(results_file(folder, name), columns)
        runs[name] = {(r["problem"], r["seed"]): r for r in rows if wanted.items() <= r.items()}
    return runs


# ---- The table ----
@functools.cache
def random_losses(problem_name):
    """True losses of 300 random configurations, NaN where it fails."""
    problem, rng = find(problem_name), np.random.default_rng(0)
    return [problem.true_loss(sample(problem.space, rng)) for _ in range(300)]


def regrets(row, lowest):
    """{column: normalised regret} of a row. lowest: the lowest loss of any run on its problem."""
    optimum, others = find(row["problem"]).optimum, random_losses(row["problem"])
    if math.isnan(optimum):  # of a training it is not known
        optimum = min(lowest, np.nanmin(others))
    typical = np.nanmedian(others)
    losses = {c: loss for c, loss in row.items() if c.startswith(("best_", "chosen_"))}
    return {c: np.clip((v - optimum) / (typical - optimum), 0, 1) for c, v in losses.items()}


def mean_and_interval(values, n_bootstrap=2000):
    """(mean, low, high) of {(problem, seed): number}; over problems where each has one seed.

    Resampling n runs makes their variance (n - 1)/n of what it should be, which is set right
    (Efron 1982, section 5.3).
    """
    rng, means = np.random.default_rng(0), []
    n_problems = len({problem for problem, _ in values})
    strata = {}
    for (problem, _), value in sorted(values.items()):
        strata.setdefault(problem if n_problems < len(values) else "all", []).append(value)
    for numbers in map(np.array, strata.values()):
        n, mean = len(numbers), numbers.mean()
        resampled = numbers[rng.integers(n, size=(n_bootstrap, n))].mean(axis=1)
        factor = math.sqrt(n / (n - 1)) if n > 1 else math.nan
        means.append(np.append(mean + (resampled - mean) * factor, mean))
    *resampled, mean = np.mean(means, axis=0)
    return mean, *np.quantile(resampled, (0.025, 0.975))


def table(runs, heads, means):
    """Lines: a searcher each, then the differences to the first. runs: {searcher: {key: row}}.

    heads: {column: its title}; means: the same of columns of which the mean alone is shown.
    """

    def line(name, rows, sign=""):
        text = f"{name:<{width}}"
        for column in heads if rows else ():
            numbers = mean_and_interval({key: row[column] for key, row in rows.items()})
            mean, low, high = (f"{number:{sign}.4f}" for number in numbers)
            text += f"{mean} [{low} {high}]".rjust(26)
        return text

    (first, its_rows), *others = runs.items()
    width = max(24, *(len(name) + 1 for name in runs))
    titles = [f"{head:>26}" for head in heads.values()] + [f"  {m}" for m in means.values()]
    lines = [" " * width + "".join(titles) + "  runs"]
    for name, rows in runs.items():
        lines.append(line(name, rows))
        for column, title in means.items():
            mean, *_ = mean_and_interval({key: row[column] for key, row in rows.items()})
            lines[-1] += f"{mean:>{len(title) + 2}.4g}"
        lines[-1] += f"{len(rows):>6}"
    if others:
        lines.append(f"difference to {first}, paired (above 0: {first} is better)")
    for name, rows in others:
        keys = rows.keys() & its_rows.keys()
        pairs = {key: {c: rows[key][c] - its_rows[key][c] for c in heads} for key in keys}
        lines.append(f"{line(name, pairs, '+')}{len(keys):>8} runs in common")
    return lines


def report(runs, n_workers, n_trials):
    """Prints the tables: all problems pooled, then each group, of those that all searchers have."""
    problems = [{problem for problem, _ in mine} for mine in runs.values()]
    common = set.intersection(*problems) if problems else set()
    if left_out := set().union(*problems) - common:
        print(f"left out, as a searcher has no runs of them yet: {', '.join(sorted(left_out))}")
    groups = {"pooled": common} if common else {}
    for name in sorted(common):
        groups.setdefault(find(name).group, set()).add(name)
    lowest = {}
    for row in itertools.chain(*(mine.values() for mine in runs.values())):
        found = [loss for column, loss in row.items() if column.startswith("best_")]
        lowest[row["problem"]] = min([lowest.get(row["problem"], math.inf), *found])
    heads = {column: f"{n} trials" for column, n in zip(BEST, thirds(n_trials))}
    means = {CHOSEN[-1]: f"chosen at {n_trials}", "seconds": "s/suggestion"}
    if any(EACH in name for name in runs):
        heads = {column: f"{part:.0%} of the time" for column, part in zip(TAKEN, PARTS)}
        means = {"best_100": "best at the end", "seconds": "s/suggestion"}
    for group, members in groups.items():
        part = {}
        for name, mine in runs.items():
            own = {key: row for key, row in mine.items() if key[0] in members}
            part[name] = {key: row | regrets(row, lowest[key[0]]) for key, row in own.items()}
        print(f"\n{group}: {len(members)} problems, workers: {n_workers}")
        print(*table(part, heads, means), sep="\n")
    print("\nmean normalised regret [95% interval]; 0: the best known loss, 1: a median random one")
    for name in filter(is_peer, runs):
        print(name, *sorted({row["version"] for row in runs[name].values()}), sep=": ")


# ---- Command line ----
def parse(arguments, name, description):
    parser = command.parser(name, description)
    add, several = parser.add_argument, {"action": "append", "metavar": "NAME"}
    add("--searcher", **several, help="ours, a peer, or FILE.py:CLASS; again for more; default all")
    half = "tune (default): three of each family; report: those with names"
    add("--half", choices=["tune", "report"], default="tune", help=half)
    add("--problems", nargs="+", type=names, metavar="NAME", help="smooth:0-9 are ten of a family")
    add("--curves", action="store_true", help="learning curves: searchers and rules together")
    add("--stopping", **several, help="with --curves: as in run.py; default halving and none")
    add("--first_rung", type=command.positive_int, default=1, metavar="EPOCH", help="as in run.py")
    add("--seeds", type=command.positive_int, default=10)
    add("--quick", action="store_true", help="3 seeds: a searcher of ours in under 2 minutes")
    add("--trials", type=command.positive_int, help="default 60; with --curves the time of 20")
    add("--workers", type=command.positive_int, default=4, help="simulated; default 4")
    add("--results", type=pathlib.Path, default=pathlib.Path("results/compare"), metavar="DIR")
    add("--table", action="store_true", help="run nothing, print what there is")
    args = parser.parse_args(arguments)
    args.seeds = 3 if args.quick else args.seeds
    tune = [f"{family}:{i}" for family in (CURVES if args.curves else ONCE) for i in range(3)]
    half = PROBLEMS if args.half == "report" else tune
    args.problems = list(itertools.chain(*args.problems or [half]))
    args.trials = args.trials or (20 if args.curves else 60)
    if args.curves:
        args.results = args.results / "curves"
    return parser, args


def compare(parser, args, names):
    """{searcher: {(problem, seed): row}} of all there is, once what is missing has been run."""
    settings, columns = (args.workers, args.trials), CURVE_COLUMNS if args.curves else COLUMNS
    with command.checking(parser):
        if args.curves:
            if others := [name for name in args.problems if not find(name).curve]:
                raise ValueError(f"--curves: {others[0]} has none; {', '.join(CURVES)} have")
            rules = args.stopping or ["halving", "none"]
            names = map(EACH.join, itertools.product(names, rules, [str(args.first_rung)]))
        versions = {name: version_of(name) for name in names}
        recorded = read_runs(COMPARED, versions, *settings)
        runs = read_runs(args.results, versions, *settings)
        args.results.mkdir(parents=True, exist_ok=True)
    keys, calls = list(itertools.product(range(args.seeds), args.problems)), {}
    for (seed, problem), name in itertools.product(keys, versions):
        is_recorded = any(problem == other for other, _ in recorded[name])
        if versions[name] and not (is_recorded or args.table or (problem, seed) in runs[name]):
            calls[name, problem, seed] = name, versions[name], problem, seed, *settings
    for (name, *_), row in command.in_processes(run, calls, n_threads(1)):
        command.append_rows(results_file(args.results, name), columns, [row])
    runs = read_runs(args.results, versions, *settings)
    for name in versions:
        both = recorded[name] | runs[name]
        runs[name] = {key: row for key, row in both.items() if key[::-1] in keys}
    for name in [name for name in versions if not runs[name]]:
        reason = "" if versions[name] else "; not installed, see experiments/requirements.txt"
        print(f"{name}: no runs yet{reason}")
        del runs[name]
    return runs


def main(arguments=None, searchers=None, name="compare_searchers", description=__doc__):
    parser, args = parse(arguments, name, description)
    searchers = args.searcher or searchers or ["gp", "random", *peers.PEERS]
    runs = compare(parser, args, list(dict.fromkeys(searchers)))
    report(runs, args.workers, args.trials)


if __name__ == "__main__":
    kept = "runs that had ended are kept: the same command continues, --table shows them"
    command.run("compare_searchers", kept)
