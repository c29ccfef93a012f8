"""One base, many adapters: requests for different adapters generated in one batch."""

from lengthen.decoding.sampling import Logprob
from lengthen.serving.engine.base_model import LoadedBase
from lengthen.serving.engine.engine import Engine, Limits
from lengthen.serving.engine.request import Completion, GenerationEvent, GenerationRequest, RequestState

__all__ = [
    "Completion",
    "Engine",
    "GenerationEvent",
    "GenerationRequest",
    "Limits",
    "LoadedBase",
    "Logprob",
    "RequestState",
]
