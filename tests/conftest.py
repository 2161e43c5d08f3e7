"""Pytest's settings: the repository's root on the path, and every warning an error."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "error")
