"""Compares searchers over problems and seeds, by the tuner's own loop on a simulated clock.

    python -m experiments.compare_searchers                                   ours and every peer that is installed
    python -m experiments.compare_searchers --searcher gp --searcher my_gp.py:MySearcher --quick

A run: one searcher, one problem, one seed; trials last log-normal times; the seed decides durations and noise, trial by
trial, the same for every searcher. Rows go to RESULTS/<searcher>.csv as runs end; what is there is not run again
(until the searcher's file or the peer's version changes), so an interrupted comparison continues, and several at once
can share the work of different searchers.

Normalised regret after n ended trials: (lowest true loss so far - optimum) / (median true loss of random configurations
- optimum), clipped to [0, 1]; "true" means without noise; the optimum is the best known. `chosen`: the same for the true loss of the trial with the
lowest observed loss, which is what a user takes home. Means: over the seeds of a problem, then over the problems.
Intervals: 95%, bootstrap over the runs of each problem; differences to the first are paired by problem and seed.
"""

import functools
import hashlib
import inspect
import math
import pathlib
import sys
import zlib
from collections import Counter

import numpy as np

from experiments import command, peers
from experiments.problems import PROBLEMS
from experiments.simulated import simulate
from hpo.arguments import find_searcher
from hpo.searchers import SEARCHERS
from hpo.space import sample
from hpo.trial import n_threads
from run import positive_int

COLUMNS = {"searcher": str, "version": str, "problem": str, "seed": int, "workers": int, "trials": int, "trial": int}
KEY = list(COLUMNS)[:6]
COLUMNS |= {"best": float, "chosen": float, "suggest_seconds": float, "origin": str, "status": str}
LEGEND = (
    "\nmean normalised regret [95% bootstrap interval]: 0 the best known loss, 1 the median of random configurations; "
    "chosen: of the trial with the lowest noisy loss; rank: 1 the best"
)
AT = (20, 40, 60)  # numbers of trials in the table
N_TYPICAL = 300  # random configurations whose median loss counts as regret 1
GROUPS = ("analytic", "hpo", "real")
ENDED = "ended"  # status of the trials that a searcher did not ask for: it had nothing new to suggest


# ---- One run ---------------------------------------------------------------------------------------------------------
def searcher_class(name):
    return peers.PEERS[name] if name in peers.PEERS else find_searcher(name)


def version_of(name):
    """The peer's version, or a hash of the files that define our searcher: results are kept as long as it stands."""
    if name in peers.PEERS:
        return peers.version(name)
    classes = [kind for kind in searcher_class(name).__mro__ if kind.__module__ != "builtins"]
    files = dict.fromkeys(inspect.getsourcefile(kind) for kind in classes)
    return hashlib.sha1(b"".join(pathlib.Path(path).read_bytes() for path in files)).hexdigest()[:10]


def run(name, version, problem_name, seed, n_workers, n_trials):
    """Rows of one run: after each ended trial, the losses so far."""
    problem = PROBLEMS[problem_name]

    def objective(config, rng):
        seconds = rng.lognormal(0, 0.5)  # drawn first: the same for every searcher
        yield seconds, {"loss": problem.evaluate(config, rng)}

    noise_seed = zlib.crc32(problem_name.encode()) + seed
    with command.blaming(f"{name} on {problem_name}, seed {seed}"):
        searcher = searcher_class(name)(problem.space, seed, None)
        if version != version_of(name):
            raise RuntimeError("its file has changed since the comparison began; run it again")
        start = () if name in peers.PEERS else None  # peers have first trials of their own
        settings = {"n_workers": n_workers, "n_trials": n_trials, "start": start}
        trials = simulate(searcher, problem.space, objective, noise_seed, **settings)
    key = [name, version, problem_name, seed, n_workers, n_trials]
    rows, best, chosen, lowest = [], np.inf, np.inf, np.inf
    for n, trial in enumerate(sorted(trials, key=lambda trial: trial.ended), 1):
        if trial.status == "done":
            true_loss = problem.true_loss(trial.config)
            best = min(best, true_loss)
            chosen, lowest = (true_loss, trial.value) if trial.value < lowest else (chosen, lowest)
        rows.append([*key, n, best, chosen, round(trial.suggest_seconds, 6), trial.origin, trial.status])
    rows += [[*key, n, best, chosen, 0, "", ENDED] for n in range(len(rows) + 1, n_trials + 1)]
    return rows


# ---- Results on disk -------------------------------------------------------------------------------------------------
def results_file(folder, name):
    return folder / f"{name.rpartition('/')[2].replace(':', '.')}.csv"


def read_runs(folder, name):
    """{key: rows} of the complete runs in a searcher's file; a run cut off in the middle of its rows is left out."""
    runs = {}
    for row in command.read_rows(results_file(folder, name), COLUMNS):
        runs.setdefault(tuple(row[column] for column in KEY), {})[row["trial"]] = row
    return {key: list(rows.values()) for key, rows in runs.items() if len(rows) == key[-1]}


def run_missing(tasks, folder, n_processes):
    """Runs what has no rows yet; {searcher: number of its runs that failed}. tasks: (*KEY) of each run."""
    have, failed = {key for name in {task[0] for task in tasks} for key in read_runs(folder, name)}, Counter()
    with command.in_processes(run, {task: task for task in tasks if task not in have}, n_processes) as ended:
        for task, future in ended:
            try:
                command.append_rows(results_file(folder, task[0]), COLUMNS, future.result())
            except command.Failed as error:  # a peer may fail on a problem; the comparison goes on, and says so
                if not failed[task[0]]:
                    print(error, file=sys.stderr, flush=True)
                failed[task[0]] += 1
    return failed


# ---- The table -------------------------------------------------------------------------------------------------------
@functools.cache
def typical_loss(problem_name):
    """Median true loss of random configurations that do not fail."""
    problem, rng = PROBLEMS[problem_name], np.random.default_rng(0)
    return float(np.nanmedian([problem.true_loss(sample(problem.space, rng)) for _ in range(N_TYPICAL)]))


def regrets(rows, problem_name, column):
    """Normalised regret (n_trials,) after each ended trial."""
    losses = np.array([row[column] for row in sorted(rows, key=lambda row: row["trial"])])
    optimum = PROBLEMS[problem_name].optimum
    return np.clip((losses - optimum) / (typical_loss(problem_name) - optimum), 0, 1)


def load(folder, tasks, column="best"):
    """{searcher: {(problem, seed): regret (n_trials,)}}, and the same of the [seconds of each suggestion]."""
    curves, seconds = {}, {}
    for name in dict.fromkeys(task[0] for task in tasks):
        runs = read_runs(folder, name)
        mine = [(task, runs[task]) for task in tasks if task[0] == name and task in runs]
        curves[name] = {(task[2], task[3]): regrets(rows, task[2], column) for task, rows in mine}
        seconds[name] = {(task[2], task[3]): thought(rows) for task, rows in mine}
    return curves, seconds


def thought(rows):
    """[seconds of each suggestion] of a run."""
    return [row["suggest_seconds"] for row in rows if row["origin"] != "start" and row["status"] != ENDED]


def mean_and_interval(values, n_bootstrap=2000):
    """(mean, low, high) of {(problem, seed): number}: mean over problems of the mean over seeds; NaN where one has one seed.

    Resampling n runs makes their variance (n - 1)/n of what it should be, which is set right (Efron 1982, section 5.3).
    """
    rng, means = np.random.default_rng(0), []
    for problem in sorted({problem for problem, _ in values}):
        numbers = np.array([value for key, value in sorted(values.items()) if key[0] == problem])
        n, mean = len(numbers), numbers.mean()
        resampled = numbers[rng.integers(n, size=(n_bootstrap, n))].mean(axis=1)
        widened = mean + (resampled - mean) * math.sqrt(n / (n - 1)) if n > 1 else np.full(n_bootstrap, math.nan)
        means.append(np.append(widened, mean))
    overall = np.mean(means, axis=0)
    return overall[-1], *np.quantile(overall[:-1], (0.025, 0.975))


def ranks(curves, keys, at):
    """Mean rank {searcher: rank} over the runs that all searchers have; ties share their rank."""
    table = np.array([[curves[name][key][at - 1] for name in curves] for key in keys])  # (n_runs, n_searchers)
    below = (table[:, :, None] > table[:, None, :]).sum(axis=2)
    ties = (table[:, :, None] == table[:, None, :]).sum(axis=2)
    return dict(zip(curves, (below + (ties + 1) / 2).mean(axis=0)))


def label(name):
    """At most 23 characters: a searcher's name, or its file's without the folder."""
    return pathlib.Path(name).name[-23:]


def table(curves, chosen, seconds, title):
    """Lines of text: mean normalised regret [interval] at each number of trials, rank, seconds per suggestion."""
    n_trials = min(len(curve) for runs in curves.values() for curve in runs.values())
    at = sorted({*(n for n in AT if n <= n_trials), n_trials})
    common = sorted(set.intersection(*(set(runs) for runs in curves.values())))
    rank = ranks(curves, common, at[-1]) if common else {}
    heads = "".join(f"{f'{n} trials':>23}" for n in at)
    lines = [f"{title}", f"{'':<24}{heads}{f'chosen at {at[-1]}':>15}{'rank':>7}{'s/suggestion':>14}{'runs':>6}"]
    for name, runs in curves.items():
        cells = []
        for n in at:
            mean, low, high = mean_and_interval({key: curve[n - 1] for key, curve in runs.items()})
            cells.append(f"{mean:.4f} [{low:.4f} {high:.4f}]".rjust(23))
        taken = mean_and_interval({key: chosen[name][key][at[-1] - 1] for key in runs})[0]
        # the mean, as some peers think at every eighth suggestion only
        mean_seconds = f"{np.mean([value for key in runs for value in seconds[name][key]]):.3g}"
        lines.append(
            f"{label(name):<24}{''.join(cells)}{taken:>15.4f}{rank.get(name, np.nan):>7.2f}{mean_seconds:>14}{len(runs):>6}"
        )
    return lines + differences(curves, at)


def differences(curves, at):
    """Lines: each searcher's regret minus the first one's, over the runs that both have."""
    first, *others = curves
    lines = [f"difference to {first}, paired (above 0: {first} is better)"] if others else []
    for name in others:
        cells = []
        common = set(curves[name]) & set(curves[first])
        for n in at if common else []:
            values = {key: curves[name][key][n - 1] - curves[first][key][n - 1] for key in common}
            mean, low, high = mean_and_interval(values)
            cells.append(f"{mean:+.4f} [{low:+.4f} {high:+.4f}]".rjust(26))
        lines.append(f"{label(name):<21}{''.join(cells)}{len(common):>6} runs in common")
    return lines


def report(folder, tasks, workers):
    """Prints the tables, pooled and by group, and saves the plot."""
    curves, seconds = load(folder, tasks)
    chosen, _ = load(folder, tasks, "chosen")
    if without := [name for name, runs in curves.items() if not runs]:
        print(f"no runs yet: {', '.join(without)}")
    curves = {name: runs for name, runs in curves.items() if runs}
    problems = [{problem for problem, _ in runs} for runs in curves.values()]
    common = set.intersection(*problems) if problems else set()
    if not common:
        print("no results yet on a problem that all searchers have in common")
        return
    if left_out := len(set.union(*problems) - common):
        print(f"{left_out} problems are left out, on which some searcher has no runs yet")
    curves = {name: {key: runs[key] for key in runs if key[0] in common} for name, runs in curves.items()}
    for group in ("pooled", *GROUPS):
        part = curves if group == "pooled" else in_group(curves, group)
        if all(part.values()):
            title = f"{group}: {len({problem for runs in part.values() for problem, _ in runs})} problems, {workers}"
            print("", *table(part, chosen, seconds, title), sep="\n")
    print(LEGEND)
    try:
        plot(curves, folder / "regret.png")
        print(f"\nplot: {folder / 'regret.png'}")
    except ImportError:
        print("\nno plot: pip install matplotlib", file=sys.stderr)


def plot(curves, path):
    """Mean normalised regret against the number of trials, pooled and by group."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    parts = {"pooled": curves, **{group: in_group(curves, group) for group in GROUPS}}
    parts = {title: part for title, part in parts.items() if any(part.values())}
    figure, axes = plt.subplots(1, len(parts), figsize=(4.5 * len(parts), 4), squeeze=False)
    for axis, (title, part) in zip(axes[0], parts.items()):
        for name, runs in part.items():
            problems = sorted({problem for problem, _ in runs})
            means = [
                np.mean([curve for key, curve in runs.items() if key[0] == problem], axis=0) for problem in problems
            ]
            if means:
                axis.plot(np.arange(1, len(means[0]) + 1), np.mean(means, axis=0), label=name)
        axis.set(title=title, xlabel="trials", yscale="log")
    axes[0, 0].set_ylabel("mean normalised regret")
    axes[0, 0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def in_group(curves, group):
    """The part of {searcher: {(problem, seed): ...}} on the problems of a group."""
    return {
        name: {key: curve for key, curve in runs.items() if PROBLEMS[key[0]].group == group}
        for name, runs in curves.items()
    }


# ---- Command line ----------------------------------------------------------------------------------------------------
def parse(arguments=None):
    parser = command.parser("compare_searchers", __doc__)
    add = parser.add_argument
    add(
        "--searcher",
        action="append",
        metavar="NAME",
        help="ours, a peer, or FILE.py:CLASS; again for more; default all",
    )
    add("--half", choices=["tune", "report", "all"], default="tune", help="default tune: report is for the last word")
    add("--group", action="append", choices=GROUPS, help="default: all three")
    add("--problems", nargs="+", choices=PROBLEMS, metavar="NAME", help="these alone, whatever their half and group")
    add("--seeds", type=positive_int, default=10)
    add("--trials", type=positive_int, default=60)
    add("--workers", type=positive_int, default=4, help="simulated; default 4")
    add("--sequential", action="store_true", help="one worker")
    add("--quick", action="store_true", help="3 seeds: two searchers of ours in under 3 minutes on 2 cores")
    add("--processes", type=positive_int, default=n_threads(1), help="default: one for each core")
    add("--results", type=pathlib.Path, default=pathlib.Path("results/compare"), metavar="DIR")
    add("--table", action="store_true", help="run nothing, print what there is")
    args = parser.parse_args(arguments)
    args.workers = 1 if args.sequential else args.workers
    args.seeds = min(args.seeds, 3) if args.quick else args.seeds
    args.problems = args.problems or [
        name
        for name, problem in PROBLEMS.items()
        if args.half in ("all", problem.half) and (not args.group or problem.group in args.group)
    ]
    return parser, args


def recorded_version(folder, name):
    """The version of a searcher's last row in the folder; None when there is none."""
    runs = read_runs(folder, name)
    return list(runs)[-1][1] if runs else None


def main(arguments=None):
    parser, args = parse(arguments)
    names = list(dict.fromkeys(args.searcher or [*reversed(SEARCHERS), *peers.PEERS]))
    missing = {name: why for name in names if name in peers.PEERS and (why := peers.missing(name))}
    with command.checking(parser):
        command.check_results(args.results)
        recorded = {name: recorded_version(args.results, name) for name in names}
        versions = recorded | {name: version_of(name) for name in names if name not in missing}
    for name, why in missing.items():
        print(why + (": its recorded results are shown" if versions[name] else ""), file=sys.stderr)
    settings = (args.workers, args.trials)
    tasks = [(n, versions[n], p, s, *settings) for s in range(args.seeds) for p in args.problems for n in names]
    args.results.mkdir(parents=True, exist_ok=True)
    todo = [task for task in tasks if task[0] not in missing and not args.table]
    failed = run_missing(todo, args.results, args.processes)
    report(args.results, tasks, f"{args.workers} workers" if args.workers > 1 else "sequential")
    for name, n in failed.items():
        print(f"{name} failed in {n} of its {len(tasks) // len(names)} runs, first as above", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    command.run("compare_searchers", "runs that had ended are kept: the same command continues, --table shows them")
