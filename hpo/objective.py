"""The objective: loading it, describing it, running it as a program; any program as an objective.

An objective file defines config_space, metric, mode ("max" or "min"), objective(config), and maybe
prepare(constants) -> dict. The tuner's process never loads it: that would import torch, and run
whatever else the file does. In this package an objective is one of four things: the path of such a
file, the pair (module, name) of an importable function, a function, or a Program.

    python -m hpo.objective train/mlp_fashion_mnist.py --learning_rate=0.001 ...   trains once
"""

import argparse
import ast
import decimal
import importlib.util
import json
import os
import pathlib
import random
import re
import shlex
import signal
import subprocess
import symtable
import sys
import traceback
import types
from dataclasses import dataclass
from multiprocessing.connection import wait

import hpo.report

ROOT = pathlib.Path(__file__).resolve().parent.parent
TAG = "[tune-metric]:"  # begins a report on a program's output
is_loading = False  # a file of the user's is being loaded


# ---- Loading -------------------------------------------------------------------------------------
def load_module(objective, source=None):
    """An object with the attribute `objective`: for a file, its module.

    source: the file's contents when the run began, so that editing the file changes no run.
    """
    global is_loading
    if callable(objective) or isinstance(objective, Program):
        function = objective.run if isinstance(objective, Program) else objective
        return types.SimpleNamespace(objective=function)
    spec = _spec(objective)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    source = pathlib.Path(spec.origin).read_bytes() if source is None else source
    is_pair = isinstance(objective, tuple)
    if not is_pair:
        sys.path[:0] = [os.path.dirname(spec.origin), str(ROOT)]
    is_loading = True
    try:
        exec(compile(source, spec.origin, "exec"), module.__dict__)  # noqa: S102 (the user's)
    finally:
        is_loading = False
    return types.SimpleNamespace(objective=getattr(module, objective[1])) if is_pair else module


def _spec(objective):
    if isinstance(objective, tuple):
        return importlib.util.find_spec(objective[0])
    path = pathlib.Path(objective).resolve()
    return importlib.util.spec_from_file_location(path.stem, path)


def source_of(objective):
    """(source, libraries): the text of the objective's file, and the libraries that it imports.

    The fork server imports the libraries once for all trials. It does not import the file itself or
    files beside it, because they may use CUDA, which does not survive a fork. If the file mentions
    the environment or sys.path, the list is empty, because the file may set these first.
    """
    try:
        path = pathlib.Path(_spec(objective).origin)
        source, names = path.read_bytes(), []
        for node in ast.parse(source).body:
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.append(node.module)
    except (OSError, SyntaxError, ValueError, TypeError, AttributeError, ImportError):
        return None, []  # a function has no file; `describe` names every other error
    if re.search(rb"environ|putenv|sys\.path", source):
        return source, []
    near = {file.stem for folder in (path.parent, ROOT) for file in folder.iterdir()}
    return source, [name for name in names if name.partition(".")[0] not in near]


def set_generators(seed):
    """Seeds the global random generators of the imported libraries, and sets torch's threads."""
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed)
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))


# ---- Describing ----------------------------------------------------------------------------------
def describe(objective, source, *, space, metric, mode, assignments=(), prepared=None):
    """A dict, ready for JSON, with space, metric, mode, prepared, note and gpus of an objective.

    space (in JSON), metric, mode: None, or what replaces the file's. assignments: those of --set.
    prepared: None, or what the file's `prepare` returned when the run began. ValueError.
    """
    from hpo.space import constants, set_value, space_from_json, space_to_json

    try:
        module = load_module(objective, source)
    except BaseException as error:  # the user's code may raise anything
        raise ValueError(import_error(error, objective)) from error
    own = vars(module)
    space = own.get("config_space") if space is None else space_from_json(space)
    metric, mode = metric or own.get("metric"), mode or own.get("mode")
    if not isinstance(metric, str) or metric in ("", "epoch"):
        raise ValueError(f"metric: expected a name, got {metric!r}; or give --metric")
    if mode not in ("max", "min"):
        raise ValueError(f'mode: expected "max" or "min", got {mode!r}; see --mode')
    space_to_json(space)  # raises its errors now: `prepare` may take long
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        try:
            if not equals:
                raise ValueError("expected NAME=VALUE")
            space = set_value(space, name.strip(), text)
        except ValueError as error:
            raise ValueError(f"--set {assignment}: {error}") from None
    if prepared is None:
        try:
            prepared = dict(own["prepare"](constants(space)) or {}) if "prepare" in own else {}
        except BaseException as error:  # as above
            raise ValueError(f"prepare: {one_line(error)}") from error
    note, used = prepared.pop("note", ""), {"numpy", "torch", "torchvision"} & set(sys.modules)
    versions = {name: sys.modules[name].__version__ for name in sorted(used)}
    return {
        "space": space_to_json({**space, **prepared}), "metric": metric, "mode": mode,
        "prepared": prepared, "note": note, "gpus": visible_gpus(),
        "versions": {**versions, "python": sys.version.split()[0]},
    }  # fmt: skip


def visible_gpus():
    """For each GPU, the value of CUDA_VISIBLE_DEVICES that shows only this one."""
    torch, devices = sys.modules.get("torch"), pathlib.Path("/dev").glob("nvidia[0-9]*")
    n_gpus = torch.cuda.device_count() if torch else len(list(devices))
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = map(str, range(n_gpus)) if given is None else given.split(",")[:n_gpus]
    return [name.strip() for name in names if name.strip() not in ("", "-1")]


def import_error(error, path):
    """One line that says where and why a file cannot be imported."""
    if isinstance(error, SyntaxError):
        return f"{error.filename or path}, line {error.lineno}: SyntaxError: {error.msg}"
    file = str(pathlib.Path(str(path)).resolve())
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    where = f"{path}, line {lines[-1]}" if lines else path
    return f"{where}: {error if isinstance(error, ValueError) else one_line(error)}"


def one_line(error):
    """What an exception says, in one line of at most 2,000 characters. sys.exit may give a text."""
    is_text = isinstance(error, SystemExit) and isinstance(error.code, str)
    lines = [error.code] if is_text else traceback.format_exception_only(error)
    return " ".join("".join(lines).split())[:2000]


# ---- As a program --------------------------------------------------------------------------------
def run_as_program(objective, config_space, prepare=None, arguments=None):
    """Calls objective(config) with the configuration on the command line; prints its reports.

    Each name of the space is a required flag, or --config_json FILE has them all. Unknown flags are
    ignored, because tuners add their own. --trial_seed N repeats the random numbers of a trial.
    """
    from hpo.space import constants, set_value

    parser = argparse.ArgumentParser(allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("--config_json", metavar="FILE", help="a JSON file with all the values")
    parser.add_argument("--trial_seed", type=int, metavar="N", help="seed of the random generators")
    for name, entry in config_space.items():
        parser.add_argument(f"--{name}", dest=name, help=f"{entry}".replace("%", "%%"))
    given, config = vars(parser.parse_known_args(arguments)[0]), config_space
    try:
        if "config_json" in given:
            given = json.loads(pathlib.Path(given["config_json"]).read_text()) | given
        if missing := [f"--{name}" for name in config_space if name not in given]:
            raise ValueError(f"missing {', '.join(missing)}; every name of config_space is needed")
        for name in config_space:
            value = given[name]
            config = set_value(config, name, value if isinstance(value, str) else json.dumps(value))
        if prepare:
            config |= prepare({name: config[name] for name in constants(config_space)}) or {}
    except (ValueError, TypeError, OSError) as error:  # a TypeError if the file holds no dict
        parser.error(str(error))
    config.pop("note", None)  # `prepare` returns it for the tuner to show
    if "trial_seed" in given:
        set_generators(given["trial_seed"])
    objective(config)


def command_line(path, config, trial_seed, n_threads):
    """The shell command that trains a configuration again with the same seed and threads."""
    words = ["python", "-m", "hpo.objective", str(path), f"--trial_seed={trial_seed}"]
    for name, value in config.items():
        words.append(f"--{name}={value if isinstance(value, str) else json.dumps(value)}")
    return f"PYTHONPATH={shlex.quote(str(ROOT))} OMP_NUM_THREADS={n_threads} {shlex.join(words)}"


# ---- Any program ---------------------------------------------------------------------------------
@dataclass(frozen=True)
class Program:
    """Any program as an objective. It takes `--name value`, and prints lines such as

        [tune-metric]: {"accuracy": 0.9}

    pass_json: None, or the name of a flag: it gets all values in a JSON file, in place of `--name
    value`. checkpoint_flag: None, or the name of a flag: it gets the folder of a trial, in which
    the program may save its state. TRIAL_SEED, the GPU and the threads are in its environment.
    """

    path: str
    metric: str
    pass_json: str | None = None
    checkpoint_flag: str | None = None

    def words(self, config):
        """The program and its arguments, as a list: no shell splits or expands them."""
        folder = pathlib.Path(os.environ["TRIAL_CHECKPOINTS"])  # DIR/checkpoints/0000
        if self.pass_json:
            file = folder.parents[1] / "logs" / f"{folder.name}.json"
            file.unlink(missing_ok=True)  # it may be a link
            file.write_text(json.dumps(config))
            config = {self.pass_json: str(file)}
        if self.checkpoint_flag:
            folder.parent.mkdir(exist_ok=True)  # the program makes the folder, as with Syne Tune
            config = {**config, self.checkpoint_flag: str(folder)}
        words = [sys.executable, self.path] if self.path.endswith(".py") else [self.path]
        return words + [word for name, value in config.items() for word in argument(name, value)]

    def run(self, config):
        """Trains a configuration: passes the program's reports on, and logs what it prints.

        When the trial is stopped or killed, the process group gets SIGTERM. What is left of it at
        the backend's deadline gets SIGKILL from the fork server.
        """
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
        report, wrong, last_error, tail = hpo.report.Reporter(), [], "", []
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        try:
            process = subprocess.Popen(self.words(config), env=environment, **pipes)
        except OSError as error:
            sys.exit(f"{self.path}: {error.strerror}; is its first line such as #!/bin/sh?")
        try:
            for is_error, line in _lines(process):
                tail = [*tail, line[:300]][-3:]
                last_error = line if is_error else last_error
                for text in [] if is_error else line.split(TAG)[1:]:
                    try:
                        report(**reported(text))
                    except (ValueError, TypeError, AttributeError, RecursionError):
                        wrong.append(line[:300])
            code = process.wait()
        except BaseException:  # StopTrial, or the end by SIGTERM
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.killpg(os.getpid(), signal.SIGTERM)  # this process leads its group
            for _ in _lines(process):  # logs the last that it prints
                pass
            process.wait()
            raise
        finally:
            if wrong:
                print(f"warning: {len(wrong)} lines with {TAG} are no reports, first {wrong[0]!r}")
        if code:
            reason = "" if code > 0 and last_error else exit_reason(code)
            sys.exit(": ".join(filter(None, [reason, last_error])))
        if self.metric not in hpo.report.names:
            names = ", ".join(sorted(hpo.report.names - {"epoch"})) or "no report"
            expected = f'expected printed lines {TAG} {{"{self.metric}": 0.9}}, got {names}'
            sys.exit(f"{expected}; the last it printed: {' | '.join(tail) or 'nothing'}")


def argument(name, value):
    """[--name, value], written so that argparse does not read a negative value as an option."""
    name, text = "--" + name.lstrip("-"), str(value)
    if isinstance(value, str) and value.startswith("-"):
        return [f"{name}={value}"]
    if isinstance(value, float) and value < 0:
        text = f"{decimal.Decimal(text):f}"
    return [name, json.dumps(value) if isinstance(value, (list, dict)) else text]


def reported(text):
    """The metrics of a printed report, without lists, dicts and Syne Tune's own st_... entries."""
    metrics, _ = json.JSONDecoder().raw_decode(text.lstrip())  # ignores what follows the JSON
    scalars = {n: value for n, value in metrics.items() if not isinstance(value, (list, dict))}
    return {name: value for name, value in scalars.items() if not name.startswith("st_")}


def _lines(process):
    """Yields (is_error, line) of what a process prints, and copies it to the log.

    On Linux it ends when the process does: children of the process may keep its output open.
    """
    streams = {process.stdout: b"", process.stderr: b""}  # stream -> the part of a line so far
    exits = [os.pidfd_open(process.pid)] if sys.platform == "linux" else []
    while streams:
        ready = wait([*streams, *exits])
        if ready == exits and not wait([*streams], 0):
            break  # it has exited, and all that it printed has been read
        for stream in wait([*streams], 0):
            data = os.read(stream.fileno(), 2**16)
            os.write(1, data)
            text = streams.pop(stream) + (data or b"\n")
            *lines, rest = text.replace(b"\r", b"\n").split(b"\n")
            if data:
                streams[stream] = rest[-(2**17) :]  # no report is as long
            for line in filter(bytes.strip, lines):
                yield stream is process.stderr, line.decode(errors="replace").strip()


def exit_reason(code):
    """Words for the exit code of a process; "" for 0."""
    if code >= 0:
        return f"the process exited with code {code}" if code else ""
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"the process was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def is_program(path):
    """Whether a file is run as a program. Otherwise it is imported, and its `objective` called.

    A Python file is run if it defines no `objective`, or imports Syne Tune, whose Reporter prints.
    """
    if not path.endswith(".py"):
        return True
    source = pathlib.Path(path).read_bytes()
    try:
        names = symtable.symtable(source, path, "exec").get_symbols()
    except (SyntaxError, ValueError):
        return False  # `describe` says what is wrong
    defined = [n.get_name() for n in names if n.is_assigned() or n.is_imported()]
    prints = re.search(rb"^\s*(from|import) syne_tune\b", source, re.MULTILINE)
    return bool(prints) or "objective" not in defined


if __name__ == "__main__":
    if len(sys.argv) < 2 or not sys.argv[1].endswith(".py") or not os.path.isfile(sys.argv[1]):
        sys.exit("usage: python -m hpo.objective OBJECTIVE.py --NAME=VALUE ...")
    loaded = vars(load_module(sys.argv[1]))
    run_as_program(loaded["objective"], loaded["config_space"], loaded.get("prepare"), sys.argv[2:])
