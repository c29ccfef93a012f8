"""Reports on a base, an adapter and data, as the other commands would read them."""

from lengthen.doctor.data import examine_data
from lengthen.doctor.model import Finding, examine_model

__all__ = ["Finding", "examine_data", "examine_model"]
