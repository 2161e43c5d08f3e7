"""What a GPU brings to the running example, in about five minutes; without a GPU it says so.

    python -m experiments.gpu_check                          all parts
    python -m experiments.gpu_check --parts speed memory     some

Each part goes on without the others, and prints as it goes. Exit code 1 when a part has failed.

speed     seconds per epoch on the CPU, and on the GPU step by step and as a CUDA graph
accuracy  of short trainings with the same seeds on GPU and CPU
memory    GPU memory of one trial, and whether it is free again once the trial was killed
sharing   epochs per second of all processes together, for 1 to 8 of them on one GPU
"""

import multiprocessing
import os
import pathlib
import signal
import statistics
import tempfile
import time
import traceback

import torch

from experiments import command
from experiments.train_speed import SIZES, load, median_seconds, ours
from hpo.trial import LocalBackend, Report, Trial

CONFIG = {"n_units_1": 1024, "n_units_2": 1024, "batch_size": 128, "dropout_1": 0.2}
CONFIG |= {"dropout_2": 0.2, "learning_rate": 1e-3, "weight_decay": 1e-6, "epochs": 81}


def say(text):
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def as_graph(step):
    """The step as one CUDA graph: a small network waits for the launches of its 50 kernels."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def ways():
    """{name: (device, speed_up)} of what can be compared here."""
    if not torch.cuda.is_available():
        return {"CPU": ("cpu", None)}
    return {"CPU": ("cpu", None), "GPU": ("cuda", None), "GPU as a graph": ("cuda", as_graph)}


# ---- The parts -----------------------------------------------------------------------------------
def speed(args):
    torch.set_num_threads(1)
    for sizes in SIZES:
        for way, (device, speed_up) in ways().items():
            step = 10 if device == "cpu" else 1  # a tenth of the images
            (seconds,) = median_seconds([ours(sizes, *load(step, device), speed_up)], 3)
            say(f"{sizes}, {way}: {step * seconds:.3f} s an epoch")


def accuracy(args):
    """Different random numbers: the two agree only on the average."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))
    found = {}
    for way, (device, speed_up) in ways().items():
        found[way] = []
        for seed in range(args.seeds):
            torch.manual_seed(seed)
            epoch = ours((256, 64, 64), *load(1, device), speed_up)
            found[way].append([epoch() for _ in range(2)][-1])
        say(f"{way}: {' '.join(f'{a:.4f}' for a in found[way])} after 2 epochs")
        if way != "CPU" and args.seeds > 1:
            differences = [a - b for a, b in zip(found[way], found["CPU"], strict=True)]
            error = statistics.stdev(differences) / args.seeds**0.5
            say(f"{way} - CPU: {statistics.mean(differences):+.4f} +- {error:.4f}, paired by seed")


def memory(args):
    """Free memory is asked of the driver, so it counts the processes of others too."""
    with tempfile.TemporaryDirectory() as folder:
        backend = LocalBackend("train/mlp_fashion_mnist.py", seed=0, n_workers=4)
        space = backend.describe(space=None, metric=None, mode=None)["space"]
        backend.begin(pathlib.Path(folder, "logs"), 0)
        for i, how in enumerate(["in order", "by SIGKILL"]):
            before, trial = free_memory(), Trial(i, {**space, **CONFIG}, "check")
            backend.start(trial)
            if not isinstance((event := backend.wait()[0]), Report):
                raise command.Failed(f"the trial has ended: {event}")
            used = before - free_memory()
            if how == "in order":
                backend.kill(trial)
            else:
                os.kill(command.children_of(backend.process.pid)[0], signal.SIGKILL)
            begun = time.perf_counter()
            backend.wait()
            seconds, left = time.perf_counter() - begun, before - free_memory()
            say(f"a trial takes {used:.0f} MiB; killed {how} after {seconds:.1f} s: {left:.0f} MiB")
            if left > used / 10 > 0:
                raise command.Failed("a killed trial does not free the memory of the GPU")
        backend.close()


def free_memory():
    """MiB of the GPU; 0 without one."""
    return torch.cuda.mem_get_info()[0] / 2**20 if torch.cuda.is_available() else 0


def sharing(args):
    spawn = multiprocessing.get_context("spawn")
    device = list(ways().values())[-1][0]
    for sizes in SIZES[:2]:
        for n in (1, 2, 4, 8):
            barrier, rates = spawn.Barrier(n), spawn.Array("d", n)
            options = {"target": train_for, "args": (sizes, device, barrier, rates)}
            processes = [spawn.Process(name=str(i), **options) for i in range(n)]
            for process in processes:
                process.start()
            for process in processes:
                process.join()
            if any(process.exitcode for process in processes):
                raise command.Failed(f"{sizes}, {n} on one {device}: a process has failed")
            say(f"{sizes}, {n} on one {device}: {sum(rates):.3f} epochs a second")


def train_for(sizes, device, barrier, rates):
    """Notes the epochs per second while all train; each is the tenth part of an epoch."""
    torch.set_num_threads(1)
    epoch = ours(sizes, *load(10, device))
    epoch()
    barrier.wait(120)  # seconds: if another one has died, all fail
    begun, n = time.monotonic(), 0
    while time.monotonic() < begun + 4:
        epoch()
        n += 1
    rates[int(multiprocessing.current_process().name)] = n / 10 / (time.monotonic() - begun)


PARTS = {f.__name__: f for f in (speed, accuracy, memory, sharing)}


def main(arguments=None):
    parser = command.parser("gpu_check", __doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", type=command.positive_int, default=5, help="of the accuracy")
    args, n_failed = parser.parse_args(arguments), 0
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: the CPU instead"
    say(f"torch {torch.__version__}, {name}, {os.cpu_count()} cores")
    for part in args.parts:
        say(f"---- {part}")
        try:
            PARTS[part](args)
        except Exception:  # the other parts go on; the exit code tells
            n_failed += 1
            say(f"{part} has failed\n{traceback.format_exc()}")
    return min(n_failed, 1)


if __name__ == "__main__":
    command.run("gpu_check")
