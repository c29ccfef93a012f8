"""A run beside its base on the same prompts and documents, and what of the context is usable."""

from lengthen.evaluation.compare.pair import Pair, find_pair
from lengthen.evaluation.compare.probes import Probe, needle_probes
from lengthen.evaluation.compare.run import compare
from lengthen.evaluation.compare.schema import Comparison

__all__ = ["Comparison", "Pair", "Probe", "compare", "find_pair", "needle_probes"]
