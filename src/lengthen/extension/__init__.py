"""The whole line: a base, a target and documents become a model with a longer context, and a verdict on it."""

from lengthen.extension.events import PHASES, Event
from lengthen.extension.plan import Planned
from lengthen.extension.request import ExtendRequest
from lengthen.extension.run import Extension, extend, plan_extension
from lengthen.extension.state import State, read_state
from lengthen.extension.verdict import ExtensionVerdict

__all__ = [
    "PHASES",
    "Event",
    "ExtendRequest",
    "Extension",
    "ExtensionVerdict",
    "Planned",
    "State",
    "extend",
    "plan_extension",
    "read_state",
]
