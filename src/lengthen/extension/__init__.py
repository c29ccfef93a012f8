"""The whole line: a base, a target and documents become a model with a longer context, and a verdict on it."""

from lengthen.extension.events import PHASES, Event
from lengthen.extension.plan import Planned
from lengthen.extension.request import Request
from lengthen.extension.run import Extension, extend, plan_extension
from lengthen.extension.state import State, read_state
from lengthen.extension.verdict import Verdict

__all__ = [
    "PHASES",
    "Event",
    "Extension",
    "Planned",
    "Request",
    "State",
    "Verdict",
    "extend",
    "plan_extension",
    "read_state",
]
