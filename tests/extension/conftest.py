"""A base with a context of 512 tokens, and books that are longer."""

import random

import pytest

from lengthen.files import write_text


@pytest.fixture(scope="session")
def small(make_base):
    return str(make_base("small", max_position_embeddings=512))


@pytest.fixture(scope="session")
def books(tmp_path_factory):
    """Eight texts of 3,000 to 6,500 bytes, of sentences."""
    folder = tmp_path_factory.mktemp("books")
    generator = random.Random(0)
    words = ["".join(generator.choices("abcdefgh", k=generator.randint(2, 6))) for _ in range(30)]
    for index in range(8):
        sentences = [" ".join(generator.choices(words, k=9)) + "." for _ in range(400)]
        write_text(folder / f"{index}.txt", " ".join(sentences)[: 3000 + 500 * index])
    return str(folder)
