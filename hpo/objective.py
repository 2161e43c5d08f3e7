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
import errno
import importlib
import importlib.util
import json
import os
import pathlib
import platform
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
    if callable(objective) or isinstance(objective, Program):
        return types.SimpleNamespace(objective=getattr(objective, "run", objective))
    spec = _spec(objective)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    source = pathlib.Path(spec.origin).read_bytes() if source is None else source
    is_pair = isinstance(objective, tuple)
    if not is_pair:
        sys.path[:0] = [os.path.dirname(spec.origin), str(ROOT)]
    global is_loading
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
    name = path.stem if path.stem not in sys.modules else f"objective_{path.stem}"
    return importlib.util.spec_from_file_location(name, path)


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
        return None, []  # `describe` says what is wrong
    if any(word in source for word in (b"environ", b"putenv", b"sys.path")):
        return source, []
    near = {file.stem for folder in (path.parent, ROOT) for file in folder.iterdir()}
    return source, [name for name in names if name.partition(".")[0] not in near]


def set_generators(seed, n_threads=None):
    """Seeds the global random generators of the imported libraries, and sets their threads."""
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed)
        torch.set_num_threads(n_threads or torch.get_num_threads())


# ---- Describing ----------------------------------------------------------------------------------
def describe(objective, source, *, space, metric, mode, assignments=(), prepared=None):
    """A dict, ready for JSON, with space, metric, mode, prepared, note and gpus of an objective.

    space: None, or the JSON of a space that replaces the file's. metric, mode: None, or what
    replaces the file's. assignments: those of --set. prepared: None, or what the file's `prepare`
    returned when the run began; then `prepare` is not called again. ValueError says what is wrong.
    """
    from hpo.space import constants, set_value, space_from_json, space_to_json

    try:
        module = load_module(objective, source)
    except BaseException as error:  # the user's code may raise anything
        raise ValueError(import_error(error, objective)) from error
    metric, mode = metric or getattr(module, "metric", None), mode or getattr(module, "mode", None)
    if not callable(getattr(module, "objective", None)):
        raise ValueError("expected a function objective(config)")
    if space is None and not hasattr(module, "config_space"):
        raise ValueError("expected config_space, a dict of names and domains")
    if not isinstance(metric, str) or metric in ("", "epoch"):
        raise ValueError(f"metric: expected a name, got {metric!r}; or give --metric")
    if mode not in ("max", "min"):
        raise ValueError(f'mode: expected "max" or "min", got {mode!r}; see --mode')
    space = module.config_space if space is None else space_from_json(space)
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        try:
            if not equals:
                raise ValueError("expected NAME=VALUE")
            space = set_value(space, name.strip(), text)
        except ValueError as error:
            raise ValueError(f"--set {assignment}: {error}") from None
    space_to_json(space)  # raises its errors now: `prepare` may take long
    if prepared is None:
        prepared = _prepare(module, constants(space))
    note, used = prepared.pop("note", ""), {"numpy", "torch", "torchvision"} & set(sys.modules)
    versions = {name: sys.modules[name].__version__ for name in sorted(used)}
    return {
        "space": space_to_json({**space, **prepared}), "metric": metric, "mode": mode,
        "prepared": prepared, "note": note, "gpus": visible_gpus(),
        "versions": {**versions, "python": platform.python_version()},
    }  # fmt: skip


def _prepare(module, given):
    try:
        prepared = module.prepare(dict(given)) or {} if hasattr(module, "prepare") else {}
    except BaseException as error:  # the user's code may raise anything
        known = isinstance(error, (ValueError, OSError))
        raise ValueError(str(error) if known else f"prepare: {one_line(error)}") from error
    if not isinstance(prepared, dict) or set(prepared) - {*given, "note"}:
        names = ", ".join([*given, "note"])
        raise ValueError(f"prepare: expected a dict of some of {names}, got {prepared!r:.200}")
    return prepared


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
    file = str(pathlib.Path(path).resolve()) if isinstance(path, str) else ""
    frames = traceback.walk_tb(error.__traceback__)
    lines = [number for frame, number in frames if frame.f_code.co_filename == file]
    where = f"{path}, line {lines[-1]}" if lines else path
    return f"{where}: {error if isinstance(error, ValueError) else one_line(error)}"


def one_line(error):
    """Type and message of an exception in one line of at most 2,000 characters."""
    lines = [str(error)] if isinstance(error, ProgramFailed) else None
    return " ".join("".join(lines or traceback.format_exception_only(error)).split())[:2000]


# ---- As a program --------------------------------------------------------------------------------
def run_as_program(objective, config_space, prepare=None, arguments=None):
    """Calls objective(config) with the configuration on the command line; prints its reports.

    Each name of the space is a required flag, or --config_json FILE has them all. Unknown flags are
    ignored, because tuners add their own. --trial_seed N repeats the random numbers of a trial.
    """
    from hpo.space import Domain, cast_value, constants, set_value

    parser = argparse.ArgumentParser(allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("--config_json", metavar="FILE", help="a JSON file with all the values")
    parser.add_argument("--trial_seed", type=int, metavar="N", help="seed of the random generators")
    for name, entry in config_space.items():
        text = f"{entry}".replace("%", "%%")
        parser.add_argument(f"--{name}", dest=name, metavar="VALUE", help=text)
    given = vars(parser.parse_known_args(arguments)[0])
    try:
        if "config_json" in given:
            given = {**json.loads(pathlib.Path(given["config_json"]).read_text()), **given}
        if missing := [f"--{name}" for name in config_space if name not in given]:
            raise ValueError(f"missing {', '.join(missing)}; every name of config_space is needed")
        config = {name: given[name] for name in config_space}
        for name, entry in config_space.items():
            if isinstance(config[name], str):
                config |= {name: set_value({name: entry}, name, config[name])[name]}
            elif isinstance(entry, Domain):
                config[name] = cast_value(name, entry, config[name])
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
class ProgramFailed(Exception):
    """A program has failed. The message is the whole reason: a traceback would add nothing."""


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

    def __str__(self):
        return self.path

    def words(self, config):
        """The program and its arguments, as a list: no shell splits or expands them."""
        folder = pathlib.Path(os.environ["TRIAL_CHECKPOINTS"])  # DIR/checkpoints/0000
        if self.pass_json:
            file = folder.parents[1] / "logs" / f"{folder.name}.json"
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
        signal.signal(signal.SIGTERM, _on_sigterm)
        report, wrong, last_error, tail = hpo.report.Reporter(), [], "", []
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        try:
            process = subprocess.Popen(self.words(config), env=environment, **pipes)
        except OSError as error:
            is_named = error.errno in (errno.ENOEXEC, errno.ENOENT)  # the file itself exists
            hint = "; does its first line name a program, such as #!/bin/sh?" * is_named
            raise ProgramFailed(f"{self.path}: {error.strerror}{hint}") from None
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
        except BaseException:  # StopTrial, or ProgramFailed by SIGTERM
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
            raise ProgramFailed(": ".join(filter(None, [reason, last_error])))
        if self.metric not in hpo.report.names:
            names = ", ".join(sorted(hpo.report.names - {"epoch"})) or "no report"
            expected = f'expected printed lines {TAG} {{"{self.metric}": 0.9}}, got {names}'
            raise ProgramFailed(f"{expected}; the last it printed: {' | '.join(tail) or 'nothing'}")


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


def _on_sigterm(number, frame):
    raise ProgramFailed("ended by SIGTERM")


def _lines(process):
    """Yields (is_error, line) of what a process prints, and copies it to the log.

    On Linux it ends when the process does: children of the process may keep its output open.
    """
    streams = {process.stdout: b"", process.stderr: b""}  # stream -> the part of a line so far
    exits = [os.pidfd_open(process.pid)] if sys.platform == "linux" else []
    while streams:
        ready = wait([*streams, *exits])
        if ready == exits and not (ready := wait([*streams], 0)):
            break  # it has exited, and all that it printed has been read
        for stream in [s for s in (process.stdout, process.stderr) if s in ready]:
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
    loaded = load_module(sys.argv[1])
    prepare = getattr(loaded, "prepare", None)
    run_as_program(loaded.objective, loaded.config_space, prepare, sys.argv[2:])
