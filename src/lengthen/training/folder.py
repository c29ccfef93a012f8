"""The folder of a training run: new or this run's own, held while it is trained, begun with what is settled."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from lengthen.errors import OutputError, writing
from lengthen.files import atomic_files, write_text
from lengthen.recipe import Recipe, load_recipe
from lengthen.run_folder import RunFolder
from lengthen.training.resume import check_recipe

__all__ = ["begin_folder", "folder_of", "hold_folder", "prepare_folder"]


def folder_of(recipe: Recipe) -> RunFolder:
    """The run folder that a recipe names.

    Args:
        recipe: of the run.
    """
    return RunFolder(Path(recipe.out or "runs/run"))


def prepare_folder(run: RunFolder, recipe: Recipe, resume: bool) -> str:
    """Check that the run folder is new, or that it is this run's own and to be resumed.

    Args:
        run: its folder.
        recipe: of the run.
        resume: whether an earlier run there is to go on.

    Returns:
        "new", "begun" or "finished".

    Raises:
        OutputError: it holds a run, and nothing says that this is to go on; or another one.
    """
    state = run.state()
    if state == "new":
        return state
    if not resume:
        raise OutputError(f"{run} holds a run already; go on with `resume`, or choose another out")
    is_longer = check_recipe(run.path, recipe, load_recipe(run.recipe))
    return "begun" if is_longer else state


@contextmanager
def hold_folder(run: RunFolder, recipe: Recipe, resume: bool) -> Iterator[None]:
    """Keep other processes out of the run folder in this block.

    Args:
        run: its folder.
        recipe: of the run.
        resume: whether an earlier run there is to go on.

    Raises:
        OutputError: another process is in it, or began or finished a run there since it was last looked at.
    """
    with writing(run.path):
        run.path.mkdir(parents=True, exist_ok=True)
    with run.held():
        if prepare_folder(run, recipe, resume) == "finished":
            raise OutputError(f"{run} was finished by another process meanwhile")
        yield


def begin_folder(
    run: RunFolder, recipe: Recipe, config: PreTrainedConfig, tokenizer: Any, facts: dict[str, Any]
) -> None:
    """Write what is settled when a run begins.

    Args:
        run: its folder.
        recipe: of the run.
        config: the base's, extended.
        tokenizer: the run's; it gets the new length.
        facts: for run.json.
    """
    write_text(run.recipe, recipe.to_yaml())  # first: it tells that the folder is a run's
    tokenizer.model_max_length = recipe.context.target
    with atomic_files(run.path) as temporary:
        config.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    run.write_metadata(facts)
