"""A run beside its base on the same prompts and documents, and what of the context is usable."""

from lengthen.evaluation.compare.benchmarks import Benchmarks
from lengthen.evaluation.compare.pair import Pair, find_pair
from lengthen.evaluation.compare.picture import comparison_figure
from lengthen.evaluation.compare.probes import (
    Probe,
    babilong_probe,
    cloze_probe,
    copy_probe,
    default_lengths,
    needle_probe,
    ruler_probe,
)
from lengthen.evaluation.compare.run import (
    Measurement,
    Questionnaire,
    Side,
    compare,
    comparison_header,
    judge,
    measure,
)
from lengthen.results import Comparison

__all__ = [
    "Benchmarks",
    "Comparison",
    "Measurement",
    "Pair",
    "Probe",
    "Questionnaire",
    "Side",
    "babilong_probe",
    "cloze_probe",
    "compare",
    "comparison_figure",
    "comparison_header",
    "copy_probe",
    "default_lengths",
    "find_pair",
    "judge",
    "measure",
    "needle_probe",
    "ruler_probe",
]
