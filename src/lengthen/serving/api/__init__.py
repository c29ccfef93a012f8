"""An HTTP server for many adapters over one base, for clients of OpenAI's API."""

from lengthen.serving.api.server import ServerSettings, serve

__all__ = ["ServerSettings", "serve"]
