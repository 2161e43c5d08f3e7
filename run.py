"""Tunes an objective: python run.py --hours 3 --workers 4. See --help and README.md."""

import argparse
import contextlib
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
    """A space as JSON, from a JSON file or from a Python file with config_space."""
    if not text.endswith(".py"):
        return json_file(text)
    from hpo.objective import import_error, load_module
    from hpo.space import space_to_json

    try:
        return space_to_json(load_module(text).config_space)
    except (Exception, SystemExit) as error:  # whatever the user's file raises becomes one line
        raise argparse.ArgumentTypeError(import_error(error, text)) from None


FLAGS = {  # group -> [(flag, type, metavar, help)]
    "budget": [
        ("hours", float, "H", "time for the whole run, resumed or not; default 3"),
        ("trials", int, "N", "stop after N trials; default: as many as the time allows"),
        ("workers", int, "N", "trials at a time, which share the cores; default 4"),
        ("trial_timeout", float, "SECONDS", "end a longer trial; default: never"),
        ("trials_per_gpu", int, "N", "at most N trials at a time on each GPU; default: any number"),
    ],
    "search": [
        ("searcher", str, "NAME", ("gp (default), gp:SETTING=VALUE,..., random, or "
         "FILE.py:CLASS of your own")),
        ("stopping", str, "NAME", ("which trials to end early: none, median, asha, halving, or "
         "FILE.py:FUNCTION; default auto: halving where reports carry their epoch and the last "
         "epoch is known, else none")),
        ("first_rung", int, "EPOCH", "epoch of the first decision to stop; default 1"),
        ("eta", int, "N", "asha and halving let one of N go on at each rung; default 3"),
        ("seed", int, "N", "same seed, same suggestions and weights; default 0"),
        ("start", json_file, "FILE|DIR", ("configurations to try first: a list in a JSON file, or "
         "the five best of an earlier run; default: one, the middle of the space")),
        ("learn_from", str, "DIR", ("an earlier run, whose trials the searcher knows from the "
         "start; may be repeated")),
    ],
    "problem": [
        ("set", str, "NAME=VALUE", ("set a constant (epochs=27) or fix a hyperparameter "
         "(n_units_1=512); may be repeated")),
        ("space", space_file, "FILE", ("a space that replaces the objective file's, in JSON, or a "
         "Python file with config_space")),
        ("metric", str, "NAME", "the reported metric to tune; default: the file's `metric`"),
        ("mode", str, "{max,min}", "whether more or less of it is better; default: the file's"),
        ("epochs_name", str, "NAME", "the constant that is the last epoch; default epochs"),
        ("pass_json", str, "FLAG", "a program takes all values in a JSON file, by --FLAG FILE"),
        ("checkpoint_flag", str, "FLAG", "a program keeps a trial's state in a folder, --FLAG DIR"),
    ],
    "places": [
        ("dask", str, "ADDRESS", "of a Dask scheduler, tcp://HOST:8786, whose workers train"),
    ],
    "results": [
        ("results", str, "DIR", "a new folder for the run; default results/<timestamp>"),
        ("resume", str, "DIR", ("go on with the run in this folder: all else comes from there, and "
         "--hours, --trials, --workers, --trial_timeout, --trials_per_gpu and --dask may change")),
    ],
}  # fmt: skip
OPTIONS = {"space": "config_space", "set": "assignments"}  # flag -> argument of hpo.tune


def make_parser():
    """Its namespaces hold what stands on the command line; hpo.tune has the defaults."""
    parser = Parser(
        prog="run.py", allow_abbrev=False, argument_default=argparse.SUPPRESS,
        description="Tunes the hyperparameters of an objective. Everything goes to CSV files in a "
        "new folder, from which --resume goes on.",
        epilog="Exit codes: 0 finished, 1 failed, 2 bad input, 130 Ctrl-C, 143 SIGTERM, 129 a "
        "closed terminal.",
    )  # fmt: skip
    what = "a Python file with config_space, metric, mode and objective(config), or any program "
    what += "that takes --NAME VALUE and prints lines [tune-metric]: {...} (then --space, --metric "
    what += f"and --mode are needed); default {DEFAULT_OBJECTIVE.relative_to(ROOT)}"
    parser.add_argument("objective", nargs="?", metavar="OBJECTIVE", help=what)
    for title, flags in FLAGS.items():
        group = parser.add_argument_group(title)
        for flag, kind, metavar, text in flags:
            action = "append" if flag in ("set", "learn_from") else "store"
            names = {"dest": OPTIONS.get(flag, flag), "metavar": metavar, "help": text}
            group.add_argument(f"--{flag}", type=kind, action=action, **names)
    return parser


# ---- The run -------------------------------------------------------------------------------------
def main(arguments=None):
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"  # the tuner's numpy must not compete with the trials
    for name in ("stdout", "stderr"):  # a closed one, or one without Unicode, must not end the run
        stream = getattr(sys, name) or open(os.devnull, "w")  # noqa: SIM115 (for the whole run)
        stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, stream)
    warnings.showwarning = lambda message, *_: say(f"run.py: warning: {message}")
    try:
        return run(vars(make_parser().parse_args(arguments)))
    except ValueError as error:
        return say(f"run.py: error: {error}", code=2)
    except (OSError, EOFError) as error:  # no process to be had, a full /tmp
        return say(f"run.py: failed: the run could not be started: {error!r}", code=1)
    except KeyboardInterrupt as interrupt:
        return 128 + (interrupt.args or [signal.SIGINT])[0]


def run(given):
    """The exit code of a run."""
    from hpo.journal import WriteError
    from hpo.space import space_from_json
    from hpo.tuner import RunFailed, tune

    if "config_space" in given:
        given["config_space"] = space_from_json(given["config_space"])
    if "resume" not in given:
        given.setdefault("objective", str(DEFAULT_OBJECTIVE))
    try:
        ended = tune(**given)
    except (RunFailed, WriteError) as error:
        if isinstance(error, RunFailed) and error.__cause__:
            traceback.print_exception(error.__cause__)  # the user's searcher
        return say(f"run.py: failed: {error}", code=1)
    return 128 + ended.signal if ended.signal else 0


def say(text, code=None):
    """Prints to stderr, if anybody reads that, and returns the exit code."""
    from hpo.journal import printable

    with contextlib.suppress(OSError, ValueError):
        print(printable(text), file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
