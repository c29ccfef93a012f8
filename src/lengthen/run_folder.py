"""The run folder: where its files are, what state it is in, and its records, written and read.

RUN/
  recipe.yaml       what was asked; written first, so that it marks the folder as a run's
  run.json          base, trainable parameters, data, device, and the command and versions of each start
  config.json, ...  the extended config and the tokenizer
  metrics.jsonl     one record every log_every steps
  checkpoints/      the newest ones
  adapter/          what was trained, and base.json on what; or model/ after full fine-tuning
  evals/            results files
  report.html
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal

from lengthen.errors import DataError, ModelError, OutputError, writing
from lengthen.files import kept, parse_json, read_object, write_json, write_text
from lengthen.locks import locked
from lengthen.provenance import command_line, versions

__all__ = ["RunFolder", "read_base_record", "write_base_record"]


@dataclass(frozen=True)
class RunFolder:
    """A run's files.

    Args:
        path: the folder; it need not exist.
    """

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def recipe(self) -> Path:
        """The recipe, as YAML."""
        return self.path / "recipe.yaml"

    @property
    def metadata(self) -> Path:
        """Metadata beside the recipe: run.json."""
        return self.path / "run.json"

    @property
    def metrics(self) -> Path:
        """The training records, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The PEFT folder of what was trained."""
        return self.path / "adapter"

    @property
    def model(self) -> Path:
        """The model folder of full fine-tuning."""
        return self.path / "model"

    @property
    def evals(self) -> Path:
        """The folder of the results files."""
        return self.path / "evals"

    @property
    def validation(self) -> Path:
        """The results on validation data at the end of the run."""
        return self.evals / "validation.json"

    @property
    def is_run(self) -> bool:
        """Whether a run was begun here."""
        return self.recipe.is_file()

    @property
    def is_finished(self) -> bool:
        """Whether what was trained is here."""
        return self.is_run and (self.adapter.is_dir() or self.model.is_dir())

    @property
    def is_full_finetune(self) -> bool:
        """Whether this is a finished run of full fine-tuning."""
        return self.is_run and self.model.is_dir()

    def state(self) -> Literal["new", "begun", "finished"]:
        """The state of the folder, for a new run.

        Raises:
            OutputError: the folder holds something that is no run.
        """
        # Hidden files can only be what a killed write left.
        path = self.path
        if not path.exists() or (path.is_dir() and all(entry.name.startswith(".") for entry in path.iterdir())):
            return "new"
        if not self.is_run:
            raise OutputError(f"{self} has other content; choose another out or empty it")
        return "finished" if self.is_finished else "begun"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes out, while the folder is written.

        Raises:
            OutputError: another one is in it.
        """
        with locked(self.path, f"the run {self} is being trained"), kept(self.path):
            yield

    def set_aside_result(self, step: int) -> None:
        """Rename what a run that is now to be longer had come to after `step`: adapter-STEP or model-STEP.

        Raises:
            OutputError: the folder is not writable.
        """
        for folder in (self.adapter, self.model):
            if folder.is_dir():
                with writing(self.path):
                    folder.rename(folder.with_name(f"{folder.name}-{step}"))

    def results_file(self, kind: str) -> Path:
        """A new name in evals/, of the kind and the time in UTC, so that no result is lost."""
        name = f"{kind}-{datetime.now(timezone.utc):%Y%m%d-%H%M%S}"
        # Clocks go back, and two results can come in one second.
        names = chain([f"{name}.json"], (f"{name}-{number}.json" for number in count(2)))
        return next(path for path in map(self.evals.joinpath, names) if not path.exists())

    def write_metadata(self, facts: dict[str, Any]) -> None:
        """Write run.json: these facts, and this command after those of earlier starts.

        Args:
            facts: base, trainable, and what else is to be known.

        Raises:
            OutputError: the file can't be written.
        """
        started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        this = {"command": command_line(), "started": started, "versions": versions()}
        write_json(self.metadata, {**facts, "commands": [*self.read_metadata().get("commands", []), this]})

    def read_metadata(self) -> dict[str, Any]:
        """The content of run.json; empty where there is none.

        Raises:
            DataError: the file is damaged.
        """
        return read_object(self.metadata) if self.metadata.is_file() else {}

    def base_record(self) -> dict[str, Any] | None:
        """The record of the run's base, see `read_base_record`; None where the run is not finished.

        Raises:
            ModelError: the record is damaged.
        """
        if not self.is_full_finetune:
            return read_base_record(self.adapter)
        try:
            record = self.read_metadata()["base"]
            return {key: str(record[key]) for key in ("id", "model")}
        except (DataError, KeyError, TypeError) as error:
            raise ModelError(f"{self.metadata} does not say what the base was; restore it") from error

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl.

        Raises:
            OutputError: the disk is full, or the place is not writable.
        """
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise OutputError(
                f"can't write {self.metrics}: {error.strerror}; free space and start again with `resume`"
            ) from error

    def read_metrics(self, start: int = 0) -> list[dict[str, Any]]:
        """The records of metrics.jsonl; none where there is no such file yet.

        Args:
            start: how many records to pass over.

        Raises:
            DataError: a line is no record; it is named.
        """
        if not self.metrics.is_file():
            return []
        *lines, _partial = self.metrics.read_text(encoding="utf-8", errors="replace").split("\n")
        records = []
        for number, line in enumerate(lines[start:], start=start + 1):
            try:
                record = parse_json(line)
                record["step"], record["loss"]
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{self.metrics}, line {number}, is not what a run writes; mend or remove the line"
                ) from error
            records.append(record)
        return records

    def trim_metrics(self, step: int) -> None:
        """Drop the records after `step`, and a line that a killed run left half-written: a resumed run goes on there.

        Raises:
            DataError: a line is no record; it is named.
            OutputError: the file can't be written.
        """
        if self.metrics.is_file():
            kept = [record for record in self.read_metrics() if record["step"] <= step]
            write_text(self.metrics, "".join(json.dumps(record) + "\n" for record in kept))


def read_base_record(adapter: Path) -> dict[str, Any] | None:
    """The record of an adapter's base in base.json; None for adapters that lengthen did not write.

    Args:
        adapter: the PEFT folder.

    Returns:
        id, model; weight_hash where the base was not in 4 bits, unquantized_hash; quantize where it was; its context,
        tokens.

    Raises:
        ModelError: the file is damaged.
    """
    path = adapter / "base.json"
    if not path.is_file():
        return None
    try:
        record = read_object(path)
        noted = {key: str(record[key]) for key in ("id", "model")}
        hashes = ("weight_hash", "unquantized_hash")
        if not any(record.get(key) for key in hashes):
            raise KeyError("no fingerprint of the weights")
        return noted | {key: record[key] for key in (*hashes, "quantize", "context") if record.get(key)}
    except (DataError, KeyError) as error:
        raise ModelError(f"{path} is damaged, so the adapter's base is not known; restore it") from error


def write_base_record(adapter: Path, base: dict[str, Any]) -> None:
    """Write base.json.

    Args:
        adapter: the PEFT folder.
        base: id, model, hashes, context (tokens) and quantize of the base.

    Raises:
        OutputError: the file can't be written.
    """
    write_json(adapter / "base.json", base)
