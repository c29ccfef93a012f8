"""One base, many adapters: requests for different adapters generated in one batch."""

from lengthen.serving.engine.base_model import ServedBase
from lengthen.serving.engine.engine import Engine, Limits
from lengthen.serving.engine.request import Completion, Event, Generation
from lengthen.serving.engine.sampling import GenerationRequest, Logprob

__all__ = ["Completion", "Engine", "Event", "Generation", "GenerationRequest", "Limits", "Logprob", "ServedBase"]
