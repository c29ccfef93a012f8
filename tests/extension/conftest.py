"""A base with a context of 512 tokens, and books that are longer."""

import pytest


@pytest.fixture(scope="session")
def small(make_base):
    return str(make_base("small", max_position_embeddings=512))


@pytest.fixture(scope="session")
def books(books):
    """The folder's name, as commands and requests take it."""
    return str(books)
