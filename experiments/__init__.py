"""Commands that measure, compare and explain, python -m experiments.NAME: see README.md here."""

import os

# As run.py, before numpy: threads change sums in the last digits. All processes inherit it.
os.environ |= {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
