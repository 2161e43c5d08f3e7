"""Seconds per suggestion against the number of trials, one thread, three trials pending.

    python -m experiments.suggest_speed                                  ours and every peer that is installed
    python -m experiments.suggest_speed --searcher gp --searcher ax --n 100 1000

The space is the running example's, the seven parameters of a multilayer perceptron; the trials are random
configurations with the losses of the problem mlp7 after one epoch, and times. Each suggestion is followed by its result, so
that there is something new to think about. Each (searcher, n) has a process and a time limit of its own; a searcher that
makes no second suggestion in it is not asked for larger n. Tellings are part of the time where a peer fits its model in them.
"""

import dataclasses
import multiprocessing
import pathlib
import time

import numpy as np

from experiments import command, peers
from experiments.compare_searchers import searcher_class
from experiments.problems import PROBLEMS
from hpo.objective import environment
from hpo.searchers import SEARCHERS
from hpo.space import sample
from hpo.trial import Trial
from run import positive, positive_int

SIZES = (20, 50, 100, 200, 500, 1000, 2000, 5000)
N_PENDING = 3


def measure(name, n, n_suggestions, limit, connection):
    """Sends the seconds of each suggestion, as they come."""
    problem, rng = PROBLEMS["mlp7"], np.random.default_rng(0)
    searcher, started = searcher_class(name)(problem.space, 0, 1), time.perf_counter()
    trials = [ended(Trial(i, sample(problem.space, rng), "random"), problem, rng) for i in range(n)]
    trials += [Trial(n + i, sample(problem.space, rng), "random") for i in range(N_PENDING)]
    while time.perf_counter() - started < limit and n_suggestions > 0:
        before = time.perf_counter()
        config, origin = searcher.suggest(trials)
        connection.send(time.perf_counter() - before)
        trials.append(Trial(len(trials), config, origin))
        trials[-N_PENDING - 1] = ended(trials[-N_PENDING - 1], problem, rng)
        n_suggestions -= 1
    connection.send(None)


def ended(trial, problem, rng):
    loss = problem.evaluate(trial.config, rng)
    return dataclasses.replace(trial, status="done", curve=[(1, loss)], ended=float(trial.id))


def collect(name, n, n_suggestions, limit):
    """([seconds of each suggestion], one for warming up before them; why they are fewer than that, or None)."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    arguments = (name, n, 1 + n_suggestions, limit, theirs)
    process = multiprocessing.get_context("spawn").Process(target=measure, args=arguments, daemon=True)
    with environment(1):
        process.start()
    theirs.close()
    seconds, why, until = [], f"> {limit:g} s", time.monotonic() + limit + 30  # to import
    try:
        while ours.poll(max(0.0, until - time.monotonic())) and (value := ours.recv()) is not None:
            seconds.append(value)
    except EOFError:
        why = "failed"
    process.join(5)  # it may have files to take away
    process.kill()
    process.join()
    return seconds, None if len(seconds) > n_suggestions else why


def main():
    parser = command.parser("suggest_speed", __doc__)
    add = parser.add_argument
    add(
        "--searcher",
        action="append",
        metavar="NAME",
        help="ours, a peer, or FILE.py:CLASS; again for more; default: all",
    )
    add("--n", type=positive_int, nargs="+", default=SIZES)
    add("--suggestions", type=positive_int, default=40)
    add("--limit", type=positive, default=60, metavar="SECONDS", help="per searcher and n; default 60")
    args = parser.parse_args()
    with command.checking(parser):
        for name in args.searcher or ():
            searcher_class(name)
    print("median / 95th percentile, milliseconds; *: of what was suggested within the limit, or before it failed")
    print(f"{'n':<20}" + "".join(f"{n:>20}" for n in args.n))
    for name in args.searcher or [*reversed(SEARCHERS), *peers.PEERS]:
        if name in peers.PEERS and (why := peers.missing(name)):
            print(why)
            continue
        print(f"{pathlib.Path(name).name[-19:]:<20}", end="", flush=True)
        for n in args.n:
            seconds, why = collect(name, n, args.suggestions, args.limit)
            # a peer's first suggestion is told everything at once, and SMAC makes its initial design whatever it is told
            warm = seconds[max(1, len(seconds) // 2 if name in peers.PEERS else 1) :]
            if not warm:
                print(f"{why:>20}", end="", flush=True)
                break
            median, p95 = 1000 * np.quantile(warm, (0.5, 0.95))
            print(f"{f'{median:.3g} / {p95:.3g}' + ('*' if why else ''):>20}", end="", flush=True)
        print(flush=True)


if __name__ == "__main__":
    command.run("suggest_speed")
