"""Commands that measure, compare and explain: python -m experiments.NAME; see README.md."""

import os
import signal
import sys


def _leave(number, frame):
    print("interrupted: nothing had begun", file=sys.stderr, flush=True)
    os._exit(128 + number)


if sys.argv[0] == "-m":  # while a command is being imported, a second or two; what follows is up to command.run
    signal.signal(signal.SIGINT, _leave)
