"""Tunes an objective: python run.py --hours 3 --workers 4. See --help and README.md."""

import argparse
import json
import os
import pathlib
import signal
import sys
import traceback
import warnings

ROOT = pathlib.Path(__file__).resolve().parent
DEFAULT_OBJECTIVE = ROOT / "train/mlp_fashion_mnist.py"


# ---- Command line --------------------------------------------------------------------------------
class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}; see --help\n")  # one line


def json_file(text):
    """What a JSON file holds; of a folder its path."""
    if os.path.isdir(text):
        return os.path.abspath(text)
    try:
        return json.loads(pathlib.Path(text).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"expected a JSON file: {error}") from None


def space_file(text):
    """The space that is in a JSON file, or is the config_space of a Python file."""
    from hpo.objective import import_error, load_module
    from hpo.space import space_from_json

    is_python = text.endswith(".py")
    value = None if is_python else json_file(text)
    try:
        return load_module(text).config_space if is_python else space_from_json(value)
    except (Exception, SystemExit) as error:  # whatever the user's file raises becomes one line
        raise argparse.ArgumentTypeError(import_error(error, text)) from None


FLAGS = {  # group -> [(flag, type, metavar, help)]
    "budget": [
        ("hours", float, "H", "time for the whole run, resumed or not; default 3"),
        ("trials", int, "N", "stop after N trials; default: as many as the time allows"),
        ("workers", int, "N", "trials at a time, which share the cores; default 4"),
        ("trial_timeout", float, "SECONDS", "end a longer trial; default: never"),
        ("trials_per_gpu", int, "N", "at most N trials at a time on each GPU of this machine"),
        ("dask", str, "ADDRESS", 'of a Dask scheduler, tcp://HOST:8786; --dask "" leaves it again'),
    ],
    "search": [
        ("searcher", str, "NAME", "gp (default), gp:SETTING=VALUE,..., random, or FILE.py:CLASS"),
        ("stopping", str, "NAME", ("none, median, asha, halving or FILE.py:FUNCTION; default auto: "
         "halving where reports carry their epoch and the last one is known, else none")),
        ("first_rung", int, "EPOCH", "epoch of the first decision to stop; default 1"),
        ("eta", int, "N", "asha and halving let one of N go on at each rung; default 3"),
        ("seed", int, "N", "same seed, same suggestions and weights; default 0"),
        ("start", json_file, "FILE|DIR", ("configurations to try first: a JSON list, or the five "
         "best of an earlier run; default: the middle of the space")),
        ("learn_from", str, "DIR", "an earlier run that the searcher knows; may be repeated"),
    ],
    "problem": [
        ("set", str, "NAME=VALUE", "a constant, or a hyperparameter to fix; may be repeated"),
        ("space", space_file, "FILE", "in place of the objective's space: JSON, or Python"),
        ("metric", str, "NAME", "the reported metric to tune; default: the file's `metric`"),
        ("mode", str, "{max,min}", "whether more or less of it is better; default: the file's"),
        ("epochs_name", str, "NAME", "the constant that is the last epoch; default epochs"),
        ("pass_json", str, "NAME", "a program takes all values in a JSON file, by --NAME FILE"),
        ("checkpoint_flag", str, "NAME", "a program keeps its state in a folder, by --NAME DIR"),
    ],
    "results": [
        ("results", str, "DIR", "a new folder for the run; default results/<timestamp>"),
        ("resume", str, "DIR", "go on with this run; only its budget, as above, may change"),
    ],
}  # fmt: skip
OPTIONS = {"space": "config_space", "set": "assignments"}  # flag -> argument of hpo.tune


def make_parser():
    """A parser of the flags that are given; the defaults of all others are those of hpo.tune."""
    parser = Parser(
        prog="run.py", allow_abbrev=False, argument_default=argparse.SUPPRESS,
        description="Tunes the hyperparameters of an objective. All results go to a new folder.",
        epilog="Exit codes: 0 finished, 1 failed, 2 bad input, 130 Ctrl-C, 143 SIGTERM, 129 a "
        "closed terminal.",
    )  # fmt: skip
    parser.add_argument(
        "objective", nargs="?", metavar="OBJECTIVE",
        help="a Python file with config_space, metric, mode and objective(config), or any program "
        "that takes --NAME VALUE and prints lines [tune-metric]: {...} (then --space, --metric and "
        f"--mode are needed); default {DEFAULT_OBJECTIVE.relative_to(ROOT)}",
    )  # fmt: skip
    for title, flags in FLAGS.items():
        group = parser.add_argument_group(title)
        for flag, kind, metavar, text in flags:
            options = {"dest": OPTIONS.get(flag, flag), "metavar": metavar, "help": text}
            options["action"] = "append" if flag in ("set", "learn_from") else "store"
            group.add_argument(f"--{flag}", type=kind, **options)
    return parser


# ---- The run -------------------------------------------------------------------------------------
def main(arguments=None):
    """The exit code of the program."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"  # the tuner's numpy must not compete with the trials
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 (None if the shell closed it)
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    warnings.showwarning = lambda message, *_: complain(f"warning: {message}")
    try:
        return run(vars(make_parser().parse_args(arguments)))
    except ValueError as error:
        complain(f"error: {error}")
        return 2
    except (OSError, EOFError) as error:  # the system has no process to give, or /tmp is full
        complain(f"failed: the run could not be started: {error!r}")
        return 1
    except KeyboardInterrupt as interrupt:
        return 128 + (interrupt.args or [signal.SIGINT])[0]


def run(given):
    """The exit code of a run with these arguments of hpo.tune."""
    from hpo.journal import WriteError
    from hpo.tuner import RunFailed, tune

    if "resume" not in given:
        given.setdefault("objective", str(DEFAULT_OBJECTIVE))
    try:
        ended = tune(**given)
    except (RunFailed, WriteError) as error:
        if error.__cause__:
            traceback.print_exception(error.__cause__)  # of the user's searcher or rule
        complain(f"failed: {error}")
        return 1
    return 128 + ended.signal if ended.signal else 0


def complain(text):
    """Prints to stderr, if anybody reads that."""
    from hpo.status import say

    say(f"run.py: {text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
