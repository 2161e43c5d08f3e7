"""Tunes an objective file: python run.py --hours 3 --workers 4. See --help and README.md."""

import argparse
import contextlib
import dataclasses
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
FILES = ("objective", "searcher", "stopping")  # what may name a file, as seen from where the run began


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
        epilog="Exit codes: 0 finished, 1 failed, 2 bad input, 130 Ctrl-C, 143 SIGTERM, 129 a closed terminal.",
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
    early = []  # signals that have come before there was a run to end

    def on_early_signal(number, frame):
        early.append(number)
        if len(early) == 1:  # `timeout` sends two
            raise KeyboardInterrupt

    for name in ("stdout", "stderr"):  # a closed one, or one without Unicode, must not end the run
        stream = getattr(sys, name) or open(os.devnull, "w")  # noqa: SIM115 (for the whole run)
        stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, stream)
    warnings.showwarning = lambda message, *_: warn(f"{parser.prog}: warning: {message}")
    try:
        for number in ENDING_SIGNALS:
            signal.signal(number, on_early_signal)
        if args.resume is None:
            tuner = build(args)
        elif (tuner := resume(given_arguments(parser, arguments))) is None:
            return 0  # the run has finished
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    except (OSError, EOFError) as error:  # no process to be had, a full /tmp
        parser.exit(1, f"{parser.prog}: failed: the run could not be started: {error!r}\n")
    except KeyboardInterrupt:
        return 128 + early[0]
    return run(parser, tuner)


def warn(text):
    with contextlib.suppress(OSError, ValueError):  # nobody reads stderr any more: no reason to end a run
        print(text, file=sys.stderr)


def build(args, results=None):
    """The Tuner of a new run, or of the one in `results`; ValueError for bad input, and then nothing has been written."""
    from hpo.arguments import adjust, cast_start, check_arguments, find_rule, find_searcher, last_epoch, read_start
    from hpo.objective import describe, import_error
    from hpo.results import Results, check_new
    from hpo.status import STAND_IN, Status, say
    from hpo.trial import LocalBackend, warm_up
    from hpo.tuner import Tuner

    if args.results == "":
        raise ValueError("--results: expected the name of a new folder, got ''")
    folder = pathlib.Path(args.results or f"results/{time.strftime('%Y-%m-%d_%H-%M-%S')}")
    if results is None:
        check_new(folder if args.results else first_unused(folder))
    searcher_class = find_searcher(args.searcher)
    say(f"loading {args.objective}")
    rule = find_rule(args.stopping, args.first_rung, args.eta)
    warm_up(args.objective, args.workers)
    if results is None:
        problem = describe(args.objective, lambda space: adjust(space, args.space, args.set), args.metric, args.mode)
    else:
        problem = describe_again(args, results)
    stand_in = problem.prepared.get("dataset") == STAND_IN
    if results is None and not args.results:
        suffix = f"-{STAND_IN}" if stand_in else ""
        folder = first_unused(folder.with_name(folder.name + suffix))
    max_epochs = last_epoch(problem.space, args.epochs_name)
    is_auto = args.stopping == "auto"
    if rule and not max_epochs:
        if not is_auto:
            raise ValueError(
                f"--stopping {args.stopping}: needs the last epoch, a constant `epochs` in the space; name it with "
                "--epochs_name, or choose --stopping none"
            )
        rule = None
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
        settings = {"arguments": used, "directory": os.getcwd(), "prepared": problem.prepared, "start": start}
        results = Results.create(folder, problem.space, problem.metric, problem.mode, settings)
    else:
        try:
            start = cast_start(results.run.get("start"), problem.space)
        except ValueError as error:
            raise ValueError(f"{results.folder / 'run.json'}: start: {error}") from None
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
        show=Status(args, backend, results, stand_in),
        trials=results.trials,
    )


def run(parser, tuner):
    """The exit code of a run; prints its progress and its summary."""
    from hpo.results import WriteError
    from hpo.tuner import ReportsUnusable, RunFailed

    signals = []  # (number, time) of the first

    def on_signal(number, frame):
        if signals and time.monotonic() - signals[0][1] > 1:  # the second time: at once
            tuner.backend.kill_all_at_once()
            os._exit(128 + number)
        if not signals:  # a closing terminal and `timeout` send theirs twice in a moment
            signals.append((number, time.monotonic()))
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
    if not signals:
        return 0
    for number in ENDING_SIGNALS:  # all is written; Python would put back the default, which is another exit code
        signal.signal(number, signal.SIG_IGN)
    return 128 + signals[0][0]


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
    args, began_in = parse(words, f"{results.folder / 'run.json'}: arguments")[1], results.run["directory"]
    for name in FILES if began_in != os.getcwd() else ():
        there = os.path.join(began_in, getattr(args, name))
        if os.path.exists(split_name(there)[0]):  # else the run has been moved, with its files
            setattr(args, name, there)
    return args


def split_name(name):
    """(path, attribute) of FILE.py:NAME, (path, "") of FILE.py; ("", name) of any other."""
    path, _, attribute = name.rpartition(":")
    return (path, attribute) if path.endswith(".py") else (name, "") if name.endswith(".py") else ("", name)


def check_same(name, value, args, results):
    """None; ValueError when an argument given to a resumed run is not the run's own."""
    from hpo.arguments import adjust, read_start
    from hpo.space import config_key

    own, flag = getattr(args, name), "OBJECTIVE" if name == "objective" else f"--{name}"
    if name in ("metric", "mode"):
        own = getattr(results, name)
    elif name in FILES and os.path.exists(split_name(value)[0]):
        (path, attribute), (own_path, own_attribute) = split_name(value), split_name(own)
        is_same = not os.path.exists(own_path) or os.path.samefile(own_path, path)  # moved, or written in another way
        if is_same and attribute == own_attribute:
            own = value
            setattr(args, name, value)
    elif name == "start":
        value, own = read_start(value, results.space), results.run.get("start")
    elif name == "space":
        space = adjust(None, value, args.set) | results.run["prepared"]
        return check_space_same(space, results, f"--space {value} has")
    elif name == "set":
        for assignment in set(value) - set(own):
            space = adjust(results.space, None, [assignment])
            check_space_same(space, results, f"--set {assignment} makes it")
        return
    if config_key(value) != config_key(own):
        raise ValueError(
            f"{flag}: {results.folder} has {own!r}, got {value!r}; a resumed run keeps its own: leave it out"
        )


def describe_again(args, results):
    """The Problem of a run that goes on; ValueError when the objective file no longer is what it was."""
    from hpo.arguments import adjust
    from hpo.objective import describe

    if not os.path.exists(args.objective):
        raise ValueError(
            f"{args.objective}: no such file; resume from the folder in which the run began, or name OBJECTIVE"
        )

    def adjusted(space):
        return results.space if args.space else adjust(space, args.space, args.set)

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


def first_unused(folder):
    """The folder, or the first of folder-2, folder-3, ... that does not exist."""
    names = (folder.with_name(folder.name + (f"-{i}" if i > 1 else "")) for i in range(1, 10_000))
    return next(path for path in names if not path.exists())


if __name__ == "__main__":
    sys.exit(main())
