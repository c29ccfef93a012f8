"""The state of an extension: what its phases took, over all attempts."""

from types import SimpleNamespace

import pytest

from lengthen.errors import Interrupted
from lengthen.extension import ExtendRequest, State, pipeline, read_state
from lengthen.extension.pipeline import Pipeline
from lengthen.extension.plan import Planned
from lengthen.extension.questions import QuestionPlan
from lengthen.extension.state import write_state

REQUEST = ExtendRequest("base", 2048, ("books",))
PLANNED = Planned("cpu", 3, 3, 1.0, True, 3.0, 2.0, 10**9, 10**6, QuestionPlan((512,), (1,), 1, False, 1.0, "needle"))


class Killed(BaseException):
    """Stands for whatever stops a process: nothing catches it."""


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(pipeline, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def test_a_phase_took_what_all_of_its_attempts_took(clock, tmp_path):
    folder = tmp_path / "run"
    write_state(folder, State(REQUEST, plan=PLANNED, seconds={"plan": 5.0}))

    def attempt(seconds, end=None):
        """One process: `seconds` of work at the phase that is next, and what ends it."""
        opened = Pipeline(REQUEST, folder, lambda _event: None, lambda: False)
        opened.open()

        def work():
            clock.seconds += seconds
            if end is not None:
                raise end

        opened.do(read_state(folder).phase, work)

    for end in (Interrupted("stopped", 15), KeyboardInterrupt(), Killed()):
        with pytest.raises(type(end)):
            attempt(100, end)
        clock.seconds += 3600  # until somebody goes on with it
    assert read_state(folder).seconds == {"plan": 5.0}
    assert read_state(folder).unfinished == 300
    attempt(50)
    assert read_state(folder).seconds == {"plan": 5.0, "base": 350.0}
    attempt(7)
    assert read_state(folder).seconds["train"] == 7.0


def test_what_a_killed_process_took_is_known_to_half_a_minute(clock, tmp_path):
    folder = tmp_path / "run"
    write_state(folder, State(REQUEST, plan=PLANNED, seconds={"plan": 5.0}))
    opened = Pipeline(REQUEST, folder, lambda _event: None, lambda: False)
    opened.open()
    seen = []

    def work():
        for done in range(1, 11):
            clock.seconds += 10
            opened.moved(done, 10, "tokens", 0.0)
            seen.append(read_state(folder).unfinished)  # all that would be left of it

    opened.do("base", work)
    assert all(10 * done - 30 <= left <= 10 * done for done, left in enumerate(seen, start=1))
    assert read_state(folder).seconds["base"] == 100
    assert read_state(folder).unfinished == 0
