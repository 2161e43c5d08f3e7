"""Compares searchers over problems and seeds, by the tuner's own loop on a simulated clock.

    python -m experiments.compare_searchers                                   ours and every peer that is installed
    python -m experiments.compare_searchers --searcher gp --searcher my_gp.py:MySearcher --quick

A run: one searcher, one problem, one seed; trials last log-normal times; the seed decides durations and noise, trial by
trial, the same for every searcher. Rows go to RESULTS/<searcher>.csv as runs end; what is there is not run again
(until the searcher's file or the peer's version changes), so an interrupted comparison continues, and several at once
can share the work of different searchers.

Normalised regret after n ended trials: (lowest true loss so far - optimum) / (median true loss of random configurations
- optimum), clipped to [0, 1]; "true" means without noise. `chosen`: the same for the true loss of the trial with the
lowest observed loss, which is what a user takes home. Means: over the seeds of a problem, then over the problems.
Intervals: 95%, bootstrap over the runs of each problem; differences to the first are paired by problem and seed.
"""

import argparse
import csv
import functools
import hashlib
import inspect
import multiprocessing
import os
import pathlib
import sys
import time
import zlib
from concurrent.futures import ProcessPoolExecutor, as_completed

import numpy as np

from experiments import peers
from experiments.problems import PROBLEMS
from experiments.simulated import simulate
from hpo.space import sample
from run import find_searcher, positive_int

COLUMNS = ["searcher", "version", "problem", "seed", "workers", "trials", "trial", "best", "chosen", "suggest_seconds"]
COLUMNS += ["origin", "status"]
KEY = COLUMNS[:6]
AT = (20, 40, 60)  # numbers of trials in the table
N_TYPICAL = 300  # random configurations whose median loss counts as regret 1
GROUPS = ("analytic", "hpo", "real")


# ---- One run ---------------------------------------------------------------------------------------------------------
def searcher_class(name):
    return peers.PEERS[name] if name in peers.PEERS else find_searcher(name)


def version(name):
    """The peer's version, or a hash of the files that define our searcher: results are kept as long as it stands."""
    if name in peers.PEERS:
        return peers.version(name)
    classes = [kind for kind in searcher_class(name).__mro__ if kind is not object]
    files = dict.fromkeys(inspect.getsourcefile(kind) for kind in classes)
    return hashlib.sha1(b"".join(pathlib.Path(path).read_bytes() for path in files)).hexdigest()[:10]


def run(name, version, problem_name, seed, n_workers, n_trials):
    """Rows of one run: after each ended trial, the losses so far."""
    problem = PROBLEMS[problem_name]

    def objective(config, rng):
        seconds = rng.lognormal(0, 0.5)  # drawn first: the same for every searcher
        yield seconds, {"loss": problem.evaluate(config, rng)}

    searcher = searcher_class(name)(problem.space, seed=seed)
    settings = {"n_workers": n_workers, "n_trials": n_trials, "start": getattr(searcher, "start", None)}
    noise_seed = zlib.crc32(problem_name.encode()) + seed
    trials = simulate(searcher, problem.space, objective, noise_seed, **settings)
    rows, best, chosen, lowest = [], np.inf, np.inf, np.inf
    for n, trial in enumerate(sorted(trials, key=lambda trial: trial.ended), 1):
        if trial.status == "done":
            true_loss = problem.true_loss(trial.config)
            best = min(best, true_loss)
            chosen, lowest = (true_loss, trial.value) if trial.value < lowest else (chosen, lowest)
        row = [name, version, problem_name, seed, n_workers, n_trials, n, best, chosen]
        rows.append([*row, round(trial.suggest_seconds, 6), trial.origin, trial.status])
    return rows


# ---- Results on disk -------------------------------------------------------------------------------------------------
def results_file(folder, name):
    return folder / f"{name.rpartition('/')[2].replace(':', '.')}.csv"


def read_runs(folder, name):
    """{key: rows} of the complete runs in a searcher's file; a run cut off in the middle of its rows is left out."""
    path, runs = results_file(folder, name), {}
    if path.exists():
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                if row["status"]:
                    runs.setdefault(tuple(row[column] for column in KEY), {})[row["trial"]] = row
    return {key: list(rows.values()) for key, rows in runs.items() if len(rows) == int(key[-1])}


def append(folder, name, rows):
    """One write for the rows of a run."""
    path = results_file(folder, name)
    torn = path.exists() and not path.read_bytes().endswith(b"\n")
    with open(path, "a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if file.tell() == 0:
            writer.writerow(COLUMNS)
        elif torn:
            file.write("\n")
        writer.writerows(rows)


def run_missing(tasks, folder, n_processes):
    """Runs what has no rows yet, printing progress. tasks: (name, version, problem, seed, workers, trials)."""
    have = {key for name in {task[0] for task in tasks} for key in read_runs(folder, name)}
    tasks = [task for task in tasks if tuple(map(str, task)) not in have]
    started, told = time.time(), 0.0
    # the children inherit these: one thread each, or the processes fight for the cores
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    with ProcessPoolExecutor(n_processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(run, *task): task for task in tasks}
        try:
            for n, future in enumerate(as_completed(futures), 1):
                name, _, problem, seed, *_ = futures[future]
                try:
                    append(folder, name, future.result())
                except Exception as error:  # a peer may fail on a problem; the comparison goes on, and says so
                    print(
                        f"{name} on {problem}, seed {seed}: {type(error).__name__}: {error}",
                        file=sys.stderr,
                        flush=True,
                    )
                if time.time() - told > 5 or n == len(tasks):
                    told, left = time.time(), (time.time() - started) / n * (len(tasks) - n)
                    last = f"{name} on {problem}, seed {seed}"
                    print(f"{n}/{len(tasks)} runs, about {left / 60:.0f} min left; last: {last}", flush=True)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


# ---- The table -------------------------------------------------------------------------------------------------------
@functools.cache
def typical_loss(problem_name):
    """Median true loss of random configurations that do not fail."""
    problem, rng = PROBLEMS[problem_name], np.random.default_rng(0)
    return float(np.nanmedian([problem.true_loss(sample(problem.space, rng)) for _ in range(N_TYPICAL)]))


def regrets(rows, problem_name, column):
    """Normalised regret (n_trials,) after each ended trial."""
    losses = np.array([float(row[column]) for row in sorted(rows, key=lambda row: int(row["trial"]))])
    optimum = PROBLEMS[problem_name].optimum
    return np.clip((losses - optimum) / (typical_loss(problem_name) - optimum), 0, 1)


def load(folder, tasks, column="best"):
    """{searcher: {(problem, seed): regret (n_trials,)}}, and {searcher: [seconds of each suggestion]}."""
    curves, seconds = {}, {}
    for name in dict.fromkeys(task[0] for task in tasks):
        runs = read_runs(folder, name)
        mine = [(task, runs[key]) for task in tasks if task[0] == name and (key := tuple(map(str, task))) in runs]
        curves[name] = {(task[2], task[3]): regrets(rows, task[2], column) for task, rows in mine}
        seconds[name] = [float(row["suggest_seconds"]) for _, rows in mine for row in rows if row["origin"] != "start"]
    return curves, seconds


def mean_and_interval(values, n_bootstrap=2000):
    """(mean, low, high) of {(problem, seed): number}: mean over problems of the mean over seeds."""
    rng, means = np.random.default_rng(0), []
    for problem in sorted({problem for problem, _ in values}):
        numbers = np.array([value for key, value in sorted(values.items()) if key[0] == problem])
        resampled = numbers[rng.integers(len(numbers), size=(n_bootstrap, len(numbers)))].mean(axis=1)
        means.append(np.append(resampled, numbers.mean()))
    overall = np.mean(means, axis=0)
    return overall[-1], *np.quantile(overall[:-1], (0.025, 0.975))


def ranks(curves, keys, at):
    """Mean rank {searcher: rank} over the runs that all searchers have; ties share their rank."""
    table = np.array([[curves[name][key][at - 1] for name in curves] for key in keys])  # (n_runs, n_searchers)
    below = (table[:, :, None] > table[:, None, :]).sum(axis=2)
    ties = (table[:, :, None] == table[:, None, :]).sum(axis=2)
    return dict(zip(curves, (below + (ties + 1) / 2).mean(axis=0)))


def table(curves, chosen, seconds, title):
    """Lines of text: mean normalised regret [interval] at each number of trials, rank, seconds per suggestion."""
    n_trials = min(len(curve) for runs in curves.values() for curve in runs.values())
    at = [n for n in AT if n <= n_trials] or [n_trials]
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
        median = f"{np.median(seconds[name]):.3g}"
        lines.append(
            f"{name[-23:]:<24}{''.join(cells)}{taken:>15.4f}{rank.get(name, np.nan):>7.2f}{median:>14}{len(runs):>6}"
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
        lines.append(f"{name[-23:]:<21}{''.join(cells)}{len(common):>6} runs in common")
    return lines


def report(folder, tasks, workers):
    """Prints the tables, pooled and by group, and saves the plot."""
    curves, seconds = load(folder, tasks)
    chosen, _ = load(folder, tasks, "chosen")
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add(
        "--searcher",
        action="append",
        metavar="NAME",
        help="ours, a peer, or FILE.py:CLASS; again for more; default all",
    )
    add("--half", choices=["tune", "report", "all"], default="tune", help="default tune: report is for the last word")
    add("--group", action="append", choices=GROUPS, help="default: all three")
    add("--problems", nargs="+", metavar="NAME", help="these alone, whatever their half and group")
    add("--seeds", type=positive_int, default=10)
    add("--trials", type=positive_int, default=60)
    add("--workers", type=positive_int, default=4, help="simulated; default 4")
    add("--sequential", action="store_true", help="one worker")
    add("--quick", action="store_true", help="4 seeds: two searchers of ours in under 3 minutes on 2 cores")
    add(
        "--processes",
        type=positive_int,
        default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2,
    )
    add("--results", type=pathlib.Path, default=pathlib.Path("results/compare"), metavar="DIR")
    add("--table", action="store_true", help="run nothing, print what there is")
    args = parser.parse_args(arguments)
    args.workers = 1 if args.sequential else args.workers
    args.seeds = min(args.seeds, 4) if args.quick else args.seeds
    if unknown := set(args.problems or []) - set(PROBLEMS):
        parser.error(f"no problem {', '.join(sorted(unknown))}; there are {', '.join(PROBLEMS)}")
    args.problems = args.problems or [
        name
        for name, problem in PROBLEMS.items()
        if args.half in ("all", problem.half) and (not args.group or problem.group in args.group)
    ]
    return args


def recorded_version(folder, name):
    """The version of a searcher's last row in the folder; None when there is none."""
    runs = read_runs(folder, name)
    return list(runs)[-1][1] if runs else None


def main(arguments=None):
    args = parse(arguments)
    from hpo.searchers import SEARCHERS

    names = args.searcher or [*reversed(SEARCHERS), *peers.PEERS]
    missing = {name: why for name in names if name in peers.PEERS and (why := peers.missing(name))}
    versions = {name: recorded_version(args.results, name) if name in missing else version(name) for name in names}
    for name, why in missing.items():
        print(why + (": its recorded results are shown" if versions[name] else ""), file=sys.stderr)
    settings = (args.workers, args.trials)
    tasks = [(n, versions[n], p, s, *settings) for s in range(args.seeds) for p in args.problems for n in names]
    args.results.mkdir(parents=True, exist_ok=True)
    try:
        if not args.table:
            run_missing([task for task in tasks if task[0] not in missing], args.results, args.processes)
    except KeyboardInterrupt:
        print("interrupted: the same command continues; --table shows what there is", file=sys.stderr)
        return
    report(args.results, tasks, f"{args.workers} workers" if args.workers > 1 else "sequential")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:  # a searcher that is not there, say
        print(f"compare_searchers: {error}", file=sys.stderr)
        sys.exit(2)
