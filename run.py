"""Tunes an objective file: python run.py --hours 3 --workers 4. See --help and README.md."""

import argparse
import dataclasses
import inspect
import json
import math
import os
import pathlib
import signal
import sys
import time
import traceback
import warnings

ROOT = pathlib.Path(__file__).resolve().parent
DEFAULT_OBJECTIVE = (
    "train/mlp_fashion_mnist.py" if ROOT == pathlib.Path.cwd() else str(ROOT / "train/mlp_fashion_mnist.py")
)
# a closed terminal ends a run in order too, unless nohup has had that signal ignored
ENDING_SIGNALS = [signal.SIGINT, signal.SIGTERM]
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
    ENDING_SIGNALS.append(signal.SIGHUP)
BUDGET = ("hours", "trials", "workers", "trial_timeout")  # what a resumed run may change


# ---- Command line -------------------------------------------------------------------------------------------------------
class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}; see --help\n")  # one line


def parse(arguments=None, prog="run.py"):
    parser = Parser(
        prog=prog,
        allow_abbrev=False,
        description="Tunes the hyperparameters of an objective file; everything goes to CSV files in a new folder, from "
        "which --resume goes on.",
        epilog="Exit codes: 0 finished, 1 failed, 2 bad input, 130 Ctrl-C, 143 SIGTERM.",
    )
    parser.add_argument(
        "objective",
        nargs="?",
        default=DEFAULT_OBJECTIVE,
        metavar="OBJECTIVE",
        help="a Python file with config_space, metric, mode and objective(config); default train/mlp_fashion_mnist.py",
    )
    add = parser.add_argument_group("budget").add_argument
    add("--hours", type=positive, default=3.0, metavar="H", help="time for the whole run, resumed or not; default 3")
    add("--trials", type=positive_int, metavar="N", help="stop after N trials; default: as many as the time allows")
    add("--workers", type=positive_int, default=4, metavar="N", help="trials at a time, sharing the cores; default 4")
    add("--trial_timeout", type=positive, default=math.inf, metavar="SECONDS", help="end a longer trial; default none")
    add = parser.add_argument_group("search").add_argument
    add(
        "--searcher",
        default="gp",
        metavar="NAME",
        help="gp (Gaussian process), random, or FILE.py:CLASS for your own; default gp",
    )
    add(
        "--stopping",
        default="auto",
        metavar="NAME",
        help="which trials to end early: none, median, asha, halving, or FILE.py:FUNCTION; default auto: halving where "
        "the last epoch is known and reports carry theirs, else none",
    )
    add(
        "--first_rung",
        type=positive_int,
        default=1,
        metavar="EPOCH",
        help="the epoch of the first decision to stop; default 1",
    )
    add("--eta", type=eta, default=3, metavar="N", help="asha and halving go on with one of N at each rung; default 3")
    add("--seed", type=natural, default=0, metavar="N", help="same seed, same suggestions and weights; default 0")
    add(
        "--start", metavar="FILE.json", help="configurations to try first, a JSON list; default the middle of the space"
    )
    add = parser.add_argument_group("problem").add_argument
    add(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="set a constant (epochs=27) or fix a hyperparameter (n_units_1=512); may be repeated",
    )
    add("--space", metavar="FILE.json", help="a space that replaces the objective file's config_space")
    add("--metric", metavar="NAME", help="the reported metric to tune; default the objective file's `metric`")
    add(
        "--mode",
        choices=["max", "min"],
        help="whether more or less of it is better; default the objective file's `mode`",
    )
    add("--epochs_name", default="epochs", metavar="NAME", help="the constant that is the last epoch; default epochs")
    add = parser.add_argument_group("results").add_argument
    add("--results", metavar="DIR", help="a new folder for the run; default results/<timestamp>")
    add(
        "--resume",
        metavar="DIR",
        help="go on with the run in this folder: all else comes from there, and --hours, --trials, --workers and "
        "--trial_timeout may be changed",
    )
    return parser, parser.parse_args(arguments)


def given_arguments(parser, arguments):
    """{name: value} of what stands on the command line, without the defaults."""
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    return vars(parser.parse_args(arguments))


def positive(text):
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return value


def whole(least):
    """The type of an argument that is an integer of at least `least`."""

    def parse_whole(text):
        if not text.strip().isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected an integer >= {least}, got {text!r}")
        return int(text)

    return parse_whole


natural, positive_int, eta = whole(0), whole(1), whole(2)


# ---- The run ------------------------------------------------------------------------------------------------------------
def main(arguments=None):
    parser, args = parse(arguments)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"  # the tuner's numpy must not compete with the trials; hpo.trial gives them their share
    for number in ENDING_SIGNALS:
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    for name in ("stdout", "stderr"):  # a closed one, or one without Unicode, must not end the run
        stream = getattr(sys, name) or open(os.devnull, "w")  # noqa: SIM115 (for the whole run)
        stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, stream)
    warnings.showwarning = lambda message, *_: print(f"{parser.prog}: warning: {message}", file=sys.stderr)
    try:
        if args.resume is None:
            tuner = build(args)
        elif (tuner := resume(given_arguments(parser, arguments))) is None:
            return 0  # the run has finished
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    return run(parser, tuner)


def build(args, results=None):
    """The Tuner of a new run, or of the one in `results`; ValueError for bad input, and then nothing has been written."""
    from hpo.objective import describe, import_error
    from hpo.results import Results, check_new
    from hpo.status import STAND_IN, Status, say
    from hpo.trial import LocalBackend, warm_up
    from hpo.tuner import Tuner

    if args.results == "":
        raise ValueError("--results: expected the name of a new folder, got ''")
    folder = pathlib.Path(args.results or f"results/{time.strftime('%Y-%m-%d_%H-%M-%S')}")
    if results is None:
        check_new(folder)
    searcher_class = find_searcher(args.searcher)
    say(f"loading {args.objective}")
    rule = find_rule(args.stopping, args.first_rung, args.eta)
    warm_up(args.objective, args.workers)
    if results is None:
        problem = describe(args.objective, lambda space: adjust(space, args), args.metric, args.mode)
    else:
        problem = describe_again(args, results)
    if results is None and not args.results:
        suffix = f"-{STAND_IN}" if problem.space.get("dataset") == STAND_IN else ""
        folder = first_unused(folder.with_name(folder.name + suffix))
    max_epochs = last_epoch(problem.space, args.epochs_name)
    is_auto = args.stopping == "auto"
    if is_auto and not max_epochs:
        rule = None
    if rule and not max_epochs:
        raise ValueError(
            f"--stopping {args.stopping}: needs the last epoch, a constant `epochs` in the space; name it with "
            "--epochs_name, or choose --stopping none"
        )
    check_arguments(f"--searcher {args.searcher}", searcher_class, "space", "seed", "max_epochs")
    try:
        searcher = searcher_class(problem.space, args.seed, max_epochs)
    except Exception as error:  # whatever the user's class raises becomes one line
        raise ValueError(
            f"--searcher {import_error(error, args.searcher.rpartition(':')[0] or args.searcher)}"
        ) from error
    check_arguments(f"--searcher {args.searcher}: suggest", searcher.suggest, "trials")
    used = {name: value for name, value in vars(args).items() if value not in (None, math.inf)}
    if results is None:
        start = read_start(args.start, problem.space) if args.start else None
        settings = {"arguments": used, "prepared": problem.prepared, "start": start}
        results = Results.create(folder, problem.space, problem.metric, problem.mode, settings)
    else:
        path = results.folder / "run.json"
        start = read_json("--resume", path, lambda run: cast_start(run.get("start"), problem.space))
        results.begin_session(used)
    logs = results.folder / "logs"
    backend = LocalBackend(args.objective, logs, args.seed, args.workers, problem.n_gpus, results.clock)
    return Tuner(
        problem.space,
        searcher,
        backend,
        results,
        n_workers=args.workers,
        seconds=args.hours * 3600,
        n_trials=args.trials,
        trial_timeout=args.trial_timeout,
        rule=rule,
        needs_epoch=not is_auto,
        max_epochs=max_epochs,
        start=start,
        show=Status(args, backend, results),
        trials=results.trials,
    )


def run(parser, tuner):
    """The exit code of a run; prints its progress and its summary."""
    from hpo.results import WriteError
    from hpo.tuner import ReportsUnusable, RunFailed

    signals = []

    def on_signal(number, frame):
        if signals:  # the second time: at once
            tuner.backend.kill_all_at_once()
            os._exit(128 + number)
        signals.append(number)
        tuner.interrupt(f"interrupted by {signal.Signals(number).name}")

    for number in ENDING_SIGNALS:
        signal.signal(number, on_signal)
    tuner.show.begin(tuner)
    try:
        reason = tuner.run()
    except ReportsUnusable as error:
        tuner.show.clear()
        tuner.results.remove()  # no trial has come to anything
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    except (RunFailed, WriteError) as error:
        tuner.show.summary(tuner, "failed")
        if isinstance(error, RunFailed) and error.__cause__:
            traceback.print_exception(error.__cause__)  # the user's searcher
        parser.exit(1, f"{parser.prog}: failed: {error}\n")
    tuner.show.summary(tuner, reason)
    tuner.results.close()
    return 128 + signals[0] if signals else 0


# ---- A run that goes on -------------------------------------------------------------------------------------------------
def resume(given):
    """The Tuner of the run in the folder given["resume"], or None when it has finished.

    given: {name: value} of the flags on the command line; ValueError names one that differs from the run's own.
    """
    from hpo.results import Results
    from hpo.status import clock, say
    from hpo.tuner import is_unended

    results = Results.open(given.pop("resume"))
    args = earlier_arguments(results)
    for name, value in given.items():
        if name in BUDGET:
            setattr(args, name, value)
        else:
            check_same(name, value, args, results)
    n_trials = len(results.trials)
    is_spent = results.clock + 0.001 >= args.hours * 3600 or n_trials >= (args.trials or math.inf)  # times are in ms
    if is_spent and not any(is_unended(trial) for trial in results.trials):
        of = f"{args.hours:g} hours" + (f" and {args.trials} trials" if args.trials else "")
        flag, used = "--hours" if n_trials < (args.trials or math.inf) else "--trials", clock(results.clock)
        say(f"{results.folder}: the run has finished: {n_trials} trials in {used}, of {of}; raise {flag} to go on")
        results.close()
        return None
    return build(args, results)


def earlier_arguments(results):
    """The arguments of the run so far, from its run.json."""
    words = []
    for name, value in results.run["arguments"].items():
        if name != "objective":
            words += [f"--{name}={item}" for item in (value if isinstance(value, list) else [value])]
    words += ["--", str(results.run["arguments"].get("objective", DEFAULT_OBJECTIVE))]
    return parse(words, f"{results.folder / 'run.json'}: arguments")[1]


def check_same(name, value, args, results):
    """None; ValueError when an argument given to a resumed run is not the run's own."""
    from hpo.space import config_key

    own, flag = getattr(args, name), "OBJECTIVE" if name == "objective" else f"--{name}"
    if name in ("metric", "mode"):
        own = getattr(results, name)
    elif name == "objective" and os.path.exists(value):
        if not os.path.exists(own) or os.path.samefile(own, value):  # the run was moved, or another way to write it
            own = args.objective = value
    elif name == "start":
        value, own = read_start(value, results.space), results.run.get("start")
    elif name == "space":
        space = adjust(None, argparse.Namespace(space=value, set=args.set)) | results.run["prepared"]
        return check_space_same(space, results, f"--space {value} has")
    elif name == "set":
        for assignment in set(value) - set(own):
            space = adjust(results.space, argparse.Namespace(space=None, set=[assignment]))
            check_space_same(space, results, f"--set {assignment} makes it")
        return
    if config_key(value) != config_key(own):
        raise ValueError(
            f"{flag}: {results.folder} has {own!r}, got {value!r}; a resumed run keeps its own: leave it out"
        )


def describe_again(args, results):
    """The Problem of a run that goes on; ValueError when the objective file no longer is what it was."""
    from hpo.objective import describe

    if not os.path.exists(args.objective):
        raise ValueError(
            f"{args.objective}: no such file; resume from the folder in which the run began, or name OBJECTIVE"
        )

    def adjusted(space):
        return results.space if args.space else adjust(space, args)

    problem = describe(args.objective, adjusted, args.metric, args.mode, results.run["prepared"])
    for name in ("metric", "mode"):
        now, own = getattr(problem, name), getattr(results, name)
        if now != own:
            raise ValueError(f"{name}: {results.folder} has {own!r}, {args.objective} now {now!r}; change it back")
    check_space_same(problem.space, results, f"{args.objective} now has")
    return dataclasses.replace(problem, space=results.space)  # in the order of its columns


def check_space_same(space, results, what):
    for name in [*results.space, *space]:
        own, other = (repr(s[name]) if name in s else "nothing" for s in (results.space, space))
        if own != other:
            raise ValueError(f"{name}: {results.folder} has {own}, {what} {other}; a resumed run keeps its space")


# ---- What the arguments name --------------------------------------------------------------------------------------------
def adjust(space, args):
    """The space of the run: the file's, or that of --space, with every --set applied."""
    from hpo.space import domains, set_value, space_from_json

    if args.space:
        space = read_json("--space", args.space, space_from_json)
    for assignment in args.set:
        name, equals, text = assignment.partition("=")
        try:
            if not equals:
                raise ValueError("expected NAME=VALUE")
            space = set_value(space, name.strip(), text)
            if not domains(space):
                raise ValueError("nothing is left to tune; to train one configuration, use python -m hpo.objective")
        except ValueError as error:
            raise ValueError(f"--set {assignment}: {error}") from None
    return space


def read_json(flag, path, convert):
    """convert(what a JSON file holds); ValueError names the flag and the file."""
    try:
        return convert(json.loads(pathlib.Path(path).read_text(), object_pairs_hook=without_repeats))
    except OSError as error:
        reason = f"cannot be read: {error.strerror}; expected a JSON file"
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = f"is not JSON: {error}"
    except ValueError as error:
        reason = error
    raise ValueError(f"{flag} {path}: {reason}")


def without_repeats(pairs):
    """The dict of a JSON object's (name, value) pairs; ValueError where a name comes twice, as one would be lost."""
    names = [name for name, _ in pairs]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{repeated[0]!r} comes twice in one object; expected each name once")
    return dict(pairs)


def read_start(path, space):
    return read_json("--start", path, lambda configs: cast_start(configs, space))


def cast_start(configs, space):
    from hpo.space import cast_config

    configs = configs if configs is None or isinstance(configs, list) else [configs]
    return configs and [cast_config(space, config) for config in configs]


def last_epoch(space, name):
    epochs = space.get(name)
    if name in space and (type(epochs) is not int or epochs < 1):
        raise ValueError(f"{name}: expected the last epoch, a constant integer >= 1, got {epochs!r}")
    if name not in space and name != "epochs":
        raise ValueError(f"--epochs_name {name}: no such name in the space; it has {', '.join(space)}")
    return epochs


def find_searcher(name):
    """The searcher class of a name, or of FILE.py:CLASS."""
    from hpo.searchers import SEARCHERS

    if name in SEARCHERS:
        return SEARCHERS[name]
    found = from_file("--searcher", name, SEARCHERS, "CLASS")
    if not callable(getattr(found, "suggest", None)):
        raise ValueError(f"--searcher {name}: expected a class with a method suggest(trials), got {found!r:.100}")
    return found


def find_rule(name, first_rung=1, eta=3):
    """The stopping rule of a name, or of FILE.py:FUNCTION, with its options; None for "none"."""
    from hpo.stopping import RULES, with_options

    known = {"auto": RULES["halving"], **RULES}
    rule = known[name] if name in known else from_file("--stopping", name, known, "FUNCTION")
    if rule is not None and (isinstance(rule, type) or not callable(rule)):
        raise ValueError(
            f"--stopping {name}: expected a function (trial, trials, max_epochs) -> bool, got {rule!r:.100}"
        )
    if rule:
        rule = with_options(rule, first_rung=first_rung, eta=eta)
        check_arguments(f"--stopping {name}", rule, "trial", "trials", "max_epochs")
    return rule


def check_arguments(what, function, *names):
    """None; ValueError when a function of the user's cannot be called with these positional arguments."""
    got = inspect.signature(function)
    try:
        got.bind(*names)
    except TypeError:
        raise ValueError(f"{what}: expected the arguments ({', '.join(names)}), got {got}") from None


def from_file(flag, name, known, kind):
    """What a Python file defines under a name, of FILE.py:NAME."""
    path, colon, attribute = name.rpartition(":")
    if not colon or not path.endswith(".py"):
        raise ValueError(f"{flag}: expected {', '.join(known)} or FILE.py:{kind}, got {name!r}")
    from hpo.objective import import_error, load_module

    if not pathlib.Path(path).is_file():
        raise ValueError(f"{flag} {name}: {path}: no such file")
    try:
        module = load_module(path)
    except Exception as error:  # whatever the user's file raises becomes one line
        raise ValueError(f"{flag}: {import_error(error, path)}") from error
    if not hasattr(module, attribute):
        raise ValueError(f"{flag} {name}: {path} has no {kind.lower()} {attribute}")
    return getattr(module, attribute)


def first_unused(folder):
    """The folder, or the first of folder-2, folder-3, ... that does not exist."""
    names = (folder.with_name(folder.name + (f"-{i}" if i > 1 else "")) for i in range(1, 10_000))
    return next(path for path in names if not path.exists())


if __name__ == "__main__":
    sys.exit(main())
