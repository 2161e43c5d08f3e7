"""Commands that measure, compare and explain, python -m experiments.NAME: see README.md here."""
