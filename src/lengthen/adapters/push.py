"""An exported folder to the Hugging Face Hub."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from lengthen.errors import OutputError
from lengthen.progress import is_progress_shown
from lengthen.upstream import reading

__all__ = ["create_repository", "upload"]

_PROBLEM = (
    "can't push to {name}: {error}; check the name and the connection, and log in with `hf auth login` or HF_TOKEN, "
    "with a token that may write there"
)


def create_repository(name: str, endpoint: str | None = None) -> None:
    """Create a model repository, or find that it is there, before any work is done for it.

    Args:
        name: OWNER/NAME.
        endpoint: of the hub; default HF_ENDPOINT's, else huggingface.co.

    Raises:
        OutputError: the name is none, the hub can't be reached, or it refuses.
    """
    if name.count("/") != 1:
        raise OutputError(f"{name!r} is no repository's name; give OWNER/NAME")
    with reading(name, _PROBLEM, OutputError):
        HfApi(endpoint).create_repo(name, exist_ok=True)


def upload(folder: Path, name: str, message: str, endpoint: str | None = None) -> str:
    """Upload a folder as one commit, and return the repository's address.

    Args:
        folder: all of its files.
        name: OWNER/NAME, which exists.
        message: of the commit.
        endpoint: as in `create_repository`.

    Raises:
        OutputError: the hub can't be reached, or refuses a file.
    """
    was_shown = not are_progress_bars_disabled()
    if not is_progress_shown():
        disable_progress_bars()
    try:
        with reading(name, _PROBLEM, OutputError):
            api = HfApi(endpoint)
            api.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
    finally:
        if was_shown:
            enable_progress_bars()
    return f"{api.endpoint}/{name}"
