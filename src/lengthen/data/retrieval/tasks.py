"""The tasks by name, with their share of the episodes."""

from collections.abc import Callable

from lengthen.data.retrieval.chains import journeys, variables
from lengthen.data.retrieval.copying import passages, strings
from lengthen.data.retrieval.episode import Episode, Passages
from lengthen.data.retrieval.lists import counting, positions, sections
from lengthen.data.retrieval.lookups import lookup, many_values, quotation, single
from lengthen.data.retrieval.python import python
from lengthen.data.retrieval.records import records
from lengthen.data.retrieval.vocabulary import Draw

__all__ = ["ONCE", "SHARES", "TASKS", "Task"]

Task = Callable[[Draw, int, Passages], Episode]
"""Makes an episode.

Args:
    draw: everything random in the sequence.
    count: about how many facts there may be.
    passages: gives passages of the run's own documents.
"""

TASKS: dict[str, Task] = {
    "single": single,
    "lookup": lookup,
    "many_values": many_values,
    "records": records,
    "quotation": quotation,
    "variables": variables,
    "journeys": journeys,
    "counting": counting,
    "positions": positions,
    "sections": sections,
    "strings": strings,
    "passages": passages,
    "python": python,
}
"""By name."""

SHARES = {
    "single": 0.06, "lookup": 0.26, "many_values": 0.10, "records": 0.08, "quotation": 0.05, "variables": 0.14,
    "journeys": 0.10, "counting": 0.08, "positions": 0.04, "sections": 0.03, "strings": 0.03, "passages": 0.03,
}  # fmt: skip
"""How often each comes, where a recipe does not say."""

ONCE = ("counting", "sections")
"""Tasks about the whole text, of which a sequence has each at most once."""
