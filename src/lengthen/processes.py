"""The processes that a launcher such as torchrun started, by what it says in the environment."""

import os

__all__ = ["has_launcher", "is_first_process", "process_count"]


def process_count() -> int:
    """How many processes work together; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Whether this process prints and writes for all."""
    return process_count() == 1 or os.environ.get("RANK", "0") == "0"


def has_launcher() -> bool:
    """Whether processes can find each other, and each its device; one alone too."""
    return "LOCAL_RANK" in os.environ
