"""Answers and losses of one side of a comparison as a file, so that nothing is measured twice."""

import hashlib
import io
import json
import zipfile
import zlib
from dataclasses import asdict
from pathlib import Path

import numpy as np

from lengthen.evaluation.answers import ScoredAnswer
from lengthen.evaluation.compare import Measurement, Questionnaire
from lengthen.files import parse_json, write_bytes

__all__ = ["fingerprint", "load_measured", "save_measured"]


def fingerprint(asked: Questionnaire) -> str:
    """A hash of every token that is read, and how.

    Args:
        asked: prompts and documents, and the contexts of both sides.
    """
    digest = hashlib.sha256(
        repr((asked.base_context, asked.context, asked.evaluator, asked.short, asked.stride)).encode()
    )
    for probe in asked.probes:
        digest.update(repr((probe.task, probe.tokens, probe.depths, probe.choices)).encode())
        for prompt in probe.prompts:
            digest.update(json.dumps([prompt.context, [asdict(question) for question in prompt.questions]]).encode())
    for ids in asked.documents:
        digest.update(ids.astype(np.int64).tobytes())
    return digest.hexdigest()


def save_measured(path: Path, measured: Measurement, of: str) -> None:
    """Write a measurement, whole or not at all.

    Args:
        path: the file, .npz.
        measured: what was measured.
        of: the `fingerprint` of what was asked.

    Raises:
        OutputError: the disk is full, or the place is not writable.
    """
    answers = [[[asdict(answer) for answer in answers] for answers in prompts] for prompts in measured.answers]
    about = {"of": of, "seconds": measured.seconds, "answers": answers}
    arrays = {
        f"{name}{place}": losses
        for name, all_losses in (("losses", measured.losses), ("short", measured.short_losses))
        for place, losses in enumerate(all_losses)
    }
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, about=np.array(json.dumps(about)), **arrays)
    write_bytes(path, file.getvalue())


def load_measured(path: Path, of: str) -> Measurement | None:
    """A measurement that was kept; None where there is none, or one of other questions.

    Args:
        path: the file, .npz.
        of: the `fingerprint` of what is asked now.
    """
    if not path.is_file():
        return None
    try:
        with np.load(path) as file:
            about = parse_json(str(file["about"]))
            if about["of"] != of:
                return None
            losses, short = (
                [file[f"{name}{place}"] for place in range(sum(key.startswith(name) for key in file.files))]
                for name in ("losses", "short")
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    answers = [[[_answer(answer) for answer in answers] for answers in prompts] for prompts in about["answers"]]
    return Measurement(answers, losses, short, about["seconds"])


def _answer(fields: dict[str, object]) -> ScoredAnswer:
    return ScoredAnswer(**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})  # type: ignore[arg-type]
