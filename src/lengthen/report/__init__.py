"""A run as one HTML file: what was run, what it cost, and what of the longer context is usable."""

from lengthen.report.page import write_report

__all__ = ["write_report"]
