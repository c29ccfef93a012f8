"""A run beside its base on the same prompts and documents, and what of the context is usable."""

from lengthen.evaluation.compare.pair import Pair, find_pair
from lengthen.evaluation.compare.probes import (
    Probe,
    babilong_probe,
    cloze_probe,
    copy_probe,
    needle_probe,
    ruler_probe,
)
from lengthen.evaluation.compare.run import compare
from lengthen.results import Comparison

__all__ = [
    "Comparison",
    "Pair",
    "Probe",
    "babilong_probe",
    "cloze_probe",
    "compare",
    "copy_probe",
    "find_pair",
    "needle_probe",
    "ruler_probe",
]
