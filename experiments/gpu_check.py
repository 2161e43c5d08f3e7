"""Whether trials share a GPU well and give its memory back; without a GPU it says so.

    python -m experiments.gpu_check     three minutes; experiments.train_speed has the speed

First the GPU memory of one trial, and whether it is free again once the trial was killed: if not,
it ends with exit code 1. Then the epochs per second of all processes together, for 1 to 8 of them.
"""

import multiprocessing
import os
import pathlib
import signal
import tempfile
import time

import torch

from experiments import command
from experiments.train_speed import SIZES, load, ours
from hpo.trial import LocalBackend, Report, Trial

CONFIG = {"n_units_1": 1024, "n_units_2": 1024, "batch_size": 128, "dropout_1": 0.2}
CONFIG |= {"dropout_2": 0.2, "learning_rate": 1e-3, "weight_decay": 1e-6, "epochs": 81}


def say(text):
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def memory():
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
                for pid in command.children_of(backend.process.pid):
                    os.kill(pid, signal.SIGKILL)
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


def sharing():
    spawn = multiprocessing.get_context("spawn")
    device = "cuda" if torch.cuda.is_available() else "cpu"
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
    epoch = ours(sizes, *load(10), device)
    epoch()
    barrier.wait(120)  # seconds: if another one has died, all fail
    begun, n = time.monotonic(), 0
    while time.monotonic() < begun + 4:
        epoch()
        n += 1
    rates[int(multiprocessing.current_process().name)] = n / 10 / (time.monotonic() - begun)


def main(arguments=None):
    command.parser("gpu_check", __doc__).parse_args(arguments)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: the CPU instead"
    say(f"torch {torch.__version__}, {name}, {os.cpu_count()} cores")
    memory()
    sharing()


if __name__ == "__main__":
    command.run("gpu_check")
