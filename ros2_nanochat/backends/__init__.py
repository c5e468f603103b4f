"""Model runtimes behind one contract (`base.py`)."""
