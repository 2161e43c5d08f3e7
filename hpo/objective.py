"""The objective file: loading it, describing it, running it as a program.

An objective file defines config_space, metric, mode ("max" or "min"), objective(config) and perhaps
prepare(constants) -> dict, which runs once before the first trial and replaces constants. Only processes of their own
load it: the tuner's process stays free of torch, and of whatever else the file does.

    python -m hpo.objective train/mlp_fashion_mnist.py --learning_rate=0.001 ...    trains one configuration
"""

import argparse
import ast
import contextlib
import ctypes
import importlib.util
import json
import multiprocessing
import multiprocessing.resource_tracker
import os
import pathlib
import random
import shlex
import signal
import sys
import traceback
import types
from dataclasses import dataclass

from hpo.space import Domain, cast_value, constants, set_value, space_from_json, space_to_json

ROOT = pathlib.Path(__file__).resolve().parent.parent  # on the path of every process that loads an objective file
SIGKILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows has none
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


@dataclass(frozen=True)
class Problem:
    """What an objective file defines, its constants prepared."""

    space: dict
    metric: str
    mode: str
    prepared: dict  # what the file's prepare returned
    n_gpus: int


# ---- Loading ------------------------------------------------------------------------------------------------------------
def load_module(path):
    """The module in a file, imported as if the file's folder and the repository's root lay on the path."""
    path = pathlib.Path(path).resolve()
    sys.path[:0] = [str(path.parent), str(ROOT)]
    name = path.stem if path.stem not in sys.modules else f"objective_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def set_generators(seed, n_threads=None):
    """Seeds the global random generators, and sets the threads, of the libraries that are loaded."""
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)
        if n_threads:
            sys.modules["torch"].set_num_threads(n_threads)


def preloadable_modules(path):
    """Modules worth importing before a trial starts: ours, and the installed ones that the file imports at its top.

    Never the file itself nor its neighbours: they may touch CUDA, which does not survive a fork. Nor what is imported after
    a line that may have set the environment or the path: it would be too early.
    """
    folder, names = pathlib.Path(path).resolve().parent, []
    for node in ast.parse(pathlib.Path(path).read_bytes()).body:
        runs_now = not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        if runs_now and _may_set_environment(node):
            break
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.append(node.module)
    return ["hpo.trial", *sorted({name for name in names if _is_installed(name.partition(".")[0], folder)})]


def _may_set_environment(statement):
    """Whether a statement names the environment, but to get from it, or a path that is not the module os.path."""
    used = [ast.unparse(part) for part in ast.walk(statement) if isinstance(part, (ast.Attribute, ast.Name))]
    used += [alias.name for alias in getattr(statement, "names", ()) if isinstance(statement, ast.ImportFrom)]
    named = sum(name.rpartition(".")[2] in ("environ", "putenv") for name in used)
    only_got = sum(name.endswith("environ.get") for name in used)
    return named > only_got or any(name.endswith(".path") and name != "os.path" for name in used)


def _is_installed(package, folder):
    """Whether an objective file in a folder that imports a package gets an installed one, and not a neighbour."""
    if (folder / package).exists() or (folder / f"{package}.py").exists():
        return False
    if package in sys.stdlib_module_names:
        return True
    spec = importlib.util.find_spec(package)
    places = [*(spec.submodule_search_locations or []), spec.origin or ""] if spec else []
    return any({"site-packages", "dist-packages"} & set(pathlib.Path(place).parts) for place in places)


@contextlib.contextmanager
def environment(n_threads):
    """What processes that load an objective file start under; restored at the end.

    Environment variables; no Ctrl-C; and a blank main module, as multiprocessing would import the tuner's in each.
    """
    if hasattr(signal, "pthread_sigmask"):
        multiprocessing.resource_tracker.ensure_running()  # as starting it below would undo the mask
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    ours = {**dict.fromkeys(THREAD_VARIABLES, str(n_threads)), "PYTHONPATH": os.pathsep.join(paths)}
    before, main = {name: os.environ.get(name) for name in ours}, sys.modules["__main__"]
    os.environ.update(ours)
    sys.modules["__main__"] = types.ModuleType("__main__")
    mask = getattr(signal, "pthread_sigmask", lambda *_: None)
    mask_before = mask(signal.SIG_BLOCK, {signal.SIGINT})  # Ctrl-C is the tuner's; a process inherits this
    try:
        yield
    finally:
        mask(signal.SIG_SETMASK, mask_before)
        sys.modules["__main__"] = main
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def own_session(dies_with_parent=True):
    """Makes this process the leader of a session, out of reach of Ctrl-C."""
    if hasattr(os, "setsid"):
        os.setsid()
    if dies_with_parent and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, see prctl(2)


def kill_session(pid, number=SIGKILL, is_gone=False):
    """Sends a signal to a process that has called `own_session`, and to all that it has started in its session.

    is_gone: to these alone, as the process is no more and its number may be another's.
    """
    before_setsid = [] if is_gone else [os.kill]  # when there is no group yet
    for send in [getattr(os, "killpg", os.kill), *before_setsid]:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            return send(pid, number)


# ---- Describing ---------------------------------------------------------------------------------------------------------
def describe(path, adjust, metric=None, mode=None, prepared=None):
    """Problem of an objective file, found out in a process of its own; ValueError says what is wrong with the file.

    adjust: function from the file's space to that of the run (--space, --set), called between the file's import and its
    prepare(constants). metric, mode: replace the file's own. prepared: what its prepare returned when the run began;
    then it does not run again.
    """
    if not pathlib.Path(path).is_file() or pathlib.Path(path).suffix != ".py":
        reason = "is no Python file" if os.path.exists(path) else "no such file"
        raise ValueError(f"{path}: {reason}; expected a .py file with config_space and objective(config)")
    connection, theirs = multiprocessing.Pipe()
    with environment(n_threads=1):
        process = multiprocessing.get_context("spawn").Process(target=_describe_process, args=(theirs, str(path)))
        process.start()
    theirs.close()
    try:
        found = _receive(connection, process, path)
        metric, mode = metric or found["metric"], mode or found["mode"]
        if not isinstance(metric, str) or not metric:
            raise ValueError(
                f"{path}: metric: expected the name of a reported metric, got {metric!r}; or give --metric"
            )
        if mode not in ("max", "min"):
            raise ValueError(f'{path}: mode: expected "max" or "min", got {mode!r}; or give --mode')
        space = adjust(space_from_json(found["space"]))
        connection.send_bytes(json.dumps(constants(space) if prepared is None else None).encode())
        answer = _receive(connection, process, path)
        prepared = answer["constants"] if prepared is None else prepared
        return Problem({**space, **prepared}, metric, mode, prepared, answer["n_gpus"])
    finally:
        kill_session(process.pid)
        process.join()


def exit_reason(code):
    """Words for the exit code of a process; "" for 0."""
    if code >= 0:
        return f"the process exited with code {code}" if code else ""
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"the process was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def one_line(error):
    """Type and message of an exception in one line."""
    text = " ".join("".join(traceback.format_exception_only(error)).split())
    return text if len(text) <= 2000 else text[:2000] + "..."


def _receive(connection, process, path):
    try:
        message = json.loads(connection.recv_bytes())
    except EOFError:
        process.join()
        reason = exit_reason(process.exitcode) or "it exited"
        raise ValueError(f"{path}: loading it ended its process: {reason}") from None
    if "error" in message:
        raise ValueError(message["error"])
    return message


def _describe_process(connection, path):
    own_session()
    try:
        module = _load_checked(path)
        found = {"space": space_to_json(module.config_space)}
        found |= {name: getattr(module, name, None) for name in ("metric", "mode")}
        connection.send_bytes(json.dumps(found, default=repr).encode())
        given = json.loads(connection.recv_bytes())
        replaced = {} if given is None else _prepare(module, path, given)
        answer = {"constants": replaced, "n_gpus": n_gpus()}
    except ValueError as error:
        text = str(error) if str(error).startswith(path) else f"{path}: {error}"
        answer = {"error": text}
    connection.send_bytes(json.dumps(answer).encode())


def n_gpus():
    """How many GPUs the trials can share: as torch says, where the objective file has imported it."""
    if "torch" in sys.modules:
        return sys.modules["torch"].cuda.device_count()
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    return len(list(pathlib.Path("/dev").glob("nvidia[0-9]*")))


def _load_checked(path):
    try:
        module = load_module(path)
    except BaseException as error:  # whatever the user's file raises, SystemExit included, becomes one line
        raise ValueError(import_error(error, path)) from error
    if not callable(getattr(module, "objective", None)):
        raise ValueError("has no function objective(config); define one")
    if not hasattr(module, "config_space"):
        raise ValueError("has no config_space; define a dict of domains and constants")
    return module


def _prepare(module, path, given):
    if not hasattr(module, "prepare"):
        return {}
    try:
        replaced = module.prepare(dict(given)) or {}
        json.dumps(replaced)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: {error}") from error
    except BaseException as error:  # as above
        raise ValueError(f"{path}: prepare: {one_line(error)}") from error
    if not isinstance(replaced, dict) or set(replaced) - set(given):
        some = f"a dict of some of {', '.join(given)}" if given else "an empty dict, as the space has no constants"
        raise ValueError(f"prepare: expected {some}, got {replaced!r:.200}")
    return replaced


def import_error(error, path):
    """One line that says where and why a file cannot be imported."""
    if isinstance(error, SyntaxError):
        return f"{error.filename or path}, line {error.lineno}: SyntaxError: {error.msg}"
    own, tb = None, error.__traceback__
    while tb:  # the innermost frame in the file itself
        own = tb if tb.tb_frame.f_code.co_filename == str(pathlib.Path(path).resolve()) else own
        tb = tb.tb_next
    if own is None:
        return f"{path}: {one_line(error)}"
    name = _entry_name(own) if isinstance(error, ValueError) else None
    return f"{path}, line {own.tb_lineno}: " + (f"{name}: {error}" if name else one_line(error))


def _entry_name(tb):
    """Key of the dict entry or keyword whose value was being computed, or None: a domain does not know its own name."""
    line, _, column, _ = list(tb.tb_frame.f_code.co_positions())[tb.tb_lasti // 2]
    source, name = pathlib.Path(tb.tb_frame.f_code.co_filename).read_bytes(), None
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Dict):
            entries = [
                (key.value, value) for key, value in zip(node.keys, node.values) if isinstance(key, ast.Constant)
            ]
        elif isinstance(node, ast.Call):
            entries = [(keyword.arg, keyword.value) for keyword in node.keywords]
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
            entries = [(getattr(node.targets[0].slice, "value", None), node.value)]
        else:
            continue
        for key, value in entries:
            if line and (value.lineno, value.col_offset) <= (line, column) < (value.end_lineno, value.end_col_offset):
                name = key
    return name


# ---- As a program -------------------------------------------------------------------------------------------------------
def run_as_program(objective, config_space, prepare=None, arguments=None):
    """Calls objective(config) with the configuration given on the command line; its reports are printed.

    Every name of the space is a required flag, or all come from --config_json FILE. Unknown flags are ignored: tuners
    add some of their own. --trial_seed N repeats the random numbers of a trial.
    """
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--config_json", metavar="FILE", help="a JSON file with all the values, instead of the flags")
    parser.add_argument("--trial_seed", type=int, metavar="N", help="seed of the random generators")
    for name, entry in config_space.items():
        help_text = repr(entry).replace("%", "%%")
        parser.add_argument(f"--{name}", dest=f"config_{name}", metavar="VALUE", help=help_text)
    flags, _ = parser.parse_known_args(arguments)
    try:
        if flags.config_json:
            given = json.loads(pathlib.Path(flags.config_json).read_text())
        else:
            given = {name: text for name in config_space if (text := getattr(flags, f"config_{name}")) is not None}
        if missing := [f"--{name}" for name in config_space if name not in given]:
            raise ValueError(f"missing {', '.join(missing)}; every name of config_space needs a value")
        config = {name: _given_value(name, entry, given[name]) for name, entry in config_space.items()}
        if prepare:
            config |= prepare({name: config[name] for name in constants(config_space)}) or {}
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if flags.trial_seed is not None:
        set_generators(flags.trial_seed)
    objective(config)


def _given_value(name, entry, value):
    """The typed value of a name: from a flag's text, or from JSON, where a constant may be anything."""
    if isinstance(value, str):
        return set_value({name: entry}, name, value)[name]
    return cast_value(name, entry, value) if isinstance(entry, Domain) else value


def command_line(path, config, trial_seed, n_threads):
    """The shell command that trains a configuration again, with the same random numbers and threads."""
    values = [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in config.items()]
    words = ["python", "-m", "hpo.objective", str(path), f"--trial_seed={trial_seed}", *values]
    elsewhere = "" if pathlib.Path.cwd() == ROOT else f"PYTHONPATH={shlex.quote(str(ROOT))} "
    return f"{elsewhere}OMP_NUM_THREADS={n_threads} {shlex.join(words)}"


if __name__ == "__main__":
    if len(sys.argv) < 2 or not pathlib.Path(sys.argv[1]).is_file() or not sys.argv[1].endswith(".py"):
        sys.exit("usage: python -m hpo.objective OBJECTIVE.py --NAME=VALUE ...")
    loaded = load_module(sys.argv[1])
    run_as_program(loaded.objective, loaded.config_space, getattr(loaded, "prepare", None), sys.argv[2:])
