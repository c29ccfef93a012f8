"""A job that trains an adapter, in OpenAI's form and as it is kept in a file."""

import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, Literal

from lengthen.serving.api.adapter_requests import TrainingRequest

__all__ = ["Job"]


@dataclass(eq=False)
class Job:
    """An adapter that is trained.

    Attributes:
        request: what was asked for.
        status: as OpenAI calls it.
        error: why it failed, else None.
        finished: Unix time; None while it is not.
        events: in order of time, as they are sent to clients.
        steps: optimizer steps of which there is an event.
        cancelled: set when it is not wanted any more.
        thread: that trains it.
    """

    request: TrainingRequest
    id: str = field(default_factory=lambda: f"ftjob-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    status: Literal["queued", "running", "succeeded", "failed", "cancelled"] = "queued"
    error: str | None = None
    finished: int | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 0
    cancelled: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    @property
    def is_finished(self) -> bool:
        """Whether nothing will change any more."""
        return self.status not in ("queued", "running")

    def tell(self, message: str, level: str = "info", metrics: dict[str, Any] | None = None) -> None:
        """Add an event.

        Args:
            message: for people.
            level: "info", "warn" or "error".
            metrics: of a step; None for what is no step.
        """
        self.events.append(
            {
                "id": f"ftevent-{self.id.removeprefix('ftjob-')}-{len(self.events)}",
                "object": "fine_tuning.job.event",
                "created_at": int(time.time()),
                "level": level,
                "message": message,
                "type": "message" if metrics is None else "metrics",
                "data": metrics,
            }
        )

    def end(self, status: Literal["succeeded", "failed", "cancelled"], message: str) -> None:
        """Close it; of one that failed the message is the error.

        Args:
            status: the last one.
            message: for people.
        """
        self.error = message if status == "failed" else None
        self.tell(message, "error" if status == "failed" else "info")
        self.finished = int(time.time())
        self.status = status  # last: a reader that sees it sees all the rest

    def to_file(self) -> dict[str, Any]:
        """The job as JSON; its documents only as long as they are needed."""
        left_out = {"documents"} if self.is_finished else set()
        facts = {name: getattr(self, name) for name in _KEPT}
        return facts | {"request": self.request.model_dump(exclude=left_out)}

    @classmethod
    def from_file(cls, content: dict[str, Any]) -> "Job":
        """The job of which `to_file` gave the content."""
        job = cls(TrainingRequest.model_validate({"documents": ["-"], **content["request"]}))
        for name in _KEPT:
            setattr(job, name, content[name])
        return job

    def to_json(self) -> dict[str, Any]:
        """OpenAI's fine-tuning job."""
        status = self.status
        error = {"code": "training_failed", "message": self.error, "param": None}
        return {
            "id": self.id,
            "object": "fine_tuning.job",
            "created_at": self.created,
            "finished_at": self.finished,
            "model": self.request.model,
            "suffix": self.request.suffix,
            "fine_tuned_model": self.request.suffix if status == "succeeded" else None,
            "status": status,
            "error": error if status == "failed" else None,
            "hyperparameters": self.request.hyperparameters.model_dump(),
            "seed": self.request.seed,
            "training_file": "inline",
            "validation_file": None,
            "result_files": [],
            "trained_tokens": None,
            "organization_id": "lengthen",
        }


_KEPT = ("id", "created", "status", "error", "finished", "events")
