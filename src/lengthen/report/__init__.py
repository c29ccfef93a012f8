"""A run as one HTML file, and as a model card: what of the longer context is usable, what was run, what it cost."""

from lengthen.report.model_card import write_model_card
from lengthen.report.page import write_report
from lengthen.report.results import check_is_run

__all__ = ["check_is_run", "write_model_card", "write_report"]
