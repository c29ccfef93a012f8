"""The state of an extension in its run folder, `extend.json`: the request, and how far it has come."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lengthen import locks
from lengthen.errors import OutputError, one_line, writing
from lengthen.extension.events import PHASES, Phase
from lengthen.extension.plan import Planned
from lengthen.extension.request import ExtendRequest
from lengthen.extension.verdict import ExtensionVerdict
from lengthen.files import kept, write_json
from lengthen.run_folder import RunFolder

__all__ = ["STATE", "State", "begin", "locked", "read_state", "write_state"]

STATE = "extend.json"


@dataclass(frozen=True)
class State:
    """How far an extension is.

    Attributes:
        request: what was asked for.
        about: what the base and the data are, a line each.
        recipe: of the run; None before it is planned.
        plan: what else was planned; None before.
        seconds: of each phase that is done, over all attempts; of the plan its last one, as nothing is left of others.
        unfinished: seconds of the phase in progress, of its attempts so far.
        verdict: what came out; None before.
    """

    request: ExtendRequest
    about: tuple[str, ...] = ()
    recipe: dict[str, Any] | None = None
    plan: Planned | None = None
    seconds: dict[Phase, float] = field(default_factory=dict)
    unfinished: float = 0.0
    verdict: ExtensionVerdict | None = None

    @property
    def phase(self) -> Phase | None:
        """The phase that is next, or in progress; None when all are done."""
        return next((phase for phase in PHASES if phase not in self.seconds), None)

    def after(self, phase: Phase, seconds: float, **changes: Any) -> "State":
        """The state when a phase is done.

        Args:
            phase: which.
            seconds: that it took over all attempts.
            changes: other attributes that it decided.
        """
        return replace(self, seconds={**self.seconds, phase: round(seconds, 1)}, unfinished=0.0, **changes)


def read_state(folder: Path) -> State | None:
    """The state of the extension in a run folder; None where none was planned there.

    Raises:
        OutputError: its file is damaged.
    """
    path = folder / STATE
    if not path.is_file():
        return None
    try:
        return TypeAdapter(State).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise OutputError(f"{path} is damaged: {one_line(error)}; choose another `out`") from error


def write_state(folder: Path, state: State) -> None:
    """Write `extend.json`, whole or not at all.

    Args:
        folder: of the run.
        state: what is written.

    Raises:
        OutputError: the disk is full, or the place is not writable.
    """
    write_json(folder / STATE, asdict(state))


def begin(folder: Path, request: ExtendRequest) -> State:
    """The state of a new extension, or of the one in the folder, which has to be the same.

    Args:
        folder: of the run; need not exist.
        request: what is asked for.

    Raises:
        OutputError: the folder has other content, or another request was begun in it.
    """
    state = read_state(folder)
    if state is None:
        if RunFolder(folder).state() != "new":
            raise OutputError(f"{folder} is the run of another command; choose another `out`, or empty it")
        return State(request)
    earlier, now = asdict(state.request), asdict(request)
    different = [f"{key} {_shown(earlier[key])}, now {_shown(now[key])}" for key in now if now[key] != earlier[key]]
    if different:
        raise OutputError(
            f"{folder} was begun with other wishes ({'; '.join(different)}); choose another `out`, or ask for the same"
        )
    return state


def _shown(value: Any) -> str:
    return (" ".join(map(str, value)) or "none") if isinstance(value, tuple | list) else str(value)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only process that works in a folder, which is made where needed.

    Training holds the folder itself; this holds a file in it, so that both can be done by one process.

    Raises:
        OutputError: another process does, or the place is not writable.
    """
    path = folder / ".lock"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        path.touch()
    with locks.locked(path, f"a model is being extended in {folder}"), kept(folder):
        try:
            yield
        finally:
            with suppress(OSError):  # nothing is left of what was refused; a folder with content stays
                if all(each.name == path.name for each in folder.iterdir()):
                    path.unlink()
                    folder.rmdir()
