"""The training run: objective, trainer, callbacks, and the run itself, top to bottom in `run.py`."""
