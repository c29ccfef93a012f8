"""One base, many adapters: requests for different adapters generated in one batch."""

from lengthen.inference.engine.base import ServedBase
from lengthen.inference.engine.engine import Engine, Limits
from lengthen.inference.engine.generation import Completion, Event, Generation
from lengthen.inference.engine.sampling import GenerationRequest, Logprob

__all__ = ["Completion", "Engine", "Event", "Generation", "GenerationRequest", "Limits", "Logprob", "ServedBase"]
