"""Runtimes of models behind one contract (`base.py`)."""
