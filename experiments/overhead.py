"""Trials per second of the trial loop itself: an objective that reports once and returns, with torch preloaded.

    python -m experiments.overhead --workers 4 --trials 300

Prints the rate, and where the time of a trial goes: from its start to the objective, in the objective, to its end.
"""

import pathlib
import tempfile

from experiments import command
from hpo.objective import describe
from hpo.results import Results
from hpo.searchers import RandomSearch
from hpo.trial import LocalBackend, warm_up
from hpo.tuner import Tuner
from run import positive_int

OBJECTIVE = """
import torch
from hpo import Reporter, uniform

config_space = {"x": uniform(0, 1)}
metric, mode = "y", "min"

def objective(config):
    report = Reporter()
    report(y=config["x"])
"""


def main():
    parser = command.parser("overhead", __doc__)
    parser.add_argument("--workers", type=positive_int, default=4)
    parser.add_argument("--trials", type=positive_int, default=300)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "report_once.py"
        path.write_text(OBJECTIVE)
        warm_up(path, args.workers)
        problem = describe(path, lambda space: space)
        run = pathlib.Path(folder) / "run"
        results = Results.create(run, problem.space, problem.metric, problem.mode, {})
        backend = LocalBackend(path, run / "logs", n_workers=args.workers)
        searcher = RandomSearch(problem.space)
        tuner = Tuner(problem.space, searcher, backend, results, n_workers=args.workers, n_trials=args.trials)
        tuner.run()
        seconds = backend.now()
        results.close()
    done = sum(trial.status == "done" for trial in tuner.trials)
    in_process = sum(trial.ended - trial.started for trial in tuner.trials) / args.trials
    print(f"{args.trials} trials ({done} done) with {args.workers} workers in {seconds:.2f} s: ", end="")
    print(f"{args.trials / seconds:.1f} trials per second")
    print(
        f"per trial: {1000 * in_process:.1f} ms from start to end, of which {1000 * tuner.busy_seconds / args.trials:.1f}"
    )
    print("ms from the entry of the objective to the end of the process")


if __name__ == "__main__":
    command.run("overhead")
