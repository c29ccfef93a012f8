"""The training run: `run.py` and, step by step, `loop.py` read top to bottom; the rest are their parts."""
