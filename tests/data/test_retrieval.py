"""Retrieval sequences: exact lengths, weights, answers recomputed from the text, nothing of the evaluation in them."""

import ast
import random
import re
from pathlib import Path

import numpy as np
import pytest
from retrieval_solver import answers

from lengthen import evaluation
from lengthen.data.documents import Document
from lengthen.data.retrieval import source, vocabulary
from lengthen.data.retrieval.chains import _names
from lengthen.data.retrieval.documents import SurroundingText
from lengthen.data.retrieval.example import _HEADINGS, INTRODUCTIONS
from lengthen.data.retrieval.python import STYLES, WORDS, _long_number, _name, _number, _string
from lengthen.data.retrieval.source import LEAST_TOKENS, Retrieval, Settings
from lengthen.data.retrieval.tasks import SHARES, TASKS
from lengthen.data.retrieval.vocabulary import VALUES, Draw, NoneLeftError
from lengthen.data.tokens import tokenize
from lengthen.errors import DataError
from lengthen.evaluation.retrieval.needle import _CITIES, LOOKUPS
from lengthen.evaluation.ruler.words import ADJECTIVES, NOUNS, VERBS
from lengthen.models.load import load_tokenizer

# As published: bAbI tasks 1 to 3, and so BABILong.
BABILONG = {
    "mary", "john", "daniel", "sandra", "fred", "jeff", "bill", "julie", "bathroom", "hallway", "garden", "office",
    "bedroom", "kitchen", "cinema", "park", "school", "apple", "football", "milk",
}  # fmt: skip


def prose(seed, paragraphs=80):
    """Paragraphs with wrapped lines, of words that are in no task."""
    rng = random.Random(seed)
    words = [
        "the",
        "a",
        "of",
        "over",
        "under",
        "house",
        "river",
        "went",
        "came",
        "old",
        "small",
        "light",
        "day",
        "night",
        "said",
        "never",
        "always",
        "with",
        "and",
        "but",
    ]

    def sentence():
        return " ".join(rng.choices(words, k=rng.randrange(4, 14))).capitalize() + "."

    made = []
    for _ in range(paragraphs):
        text = " ".join(sentence() for _ in range(rng.randrange(2, 7)))
        made.append(re.sub(r"(.{50,60}) ", r"\1\n", text))
    return "\n\n".join(made)


@pytest.fixture(scope="module")
def tiny():
    return load_tokenizer("tiny")


@pytest.fixture(scope="module")
def documents(tiny):
    return SurroundingText([tokenize([Document(f"text {seed}", prose(seed)) for seed in range(4)], tiny)], tiny)


def made(tokenizer, documents, length, indices, **settings):
    retrieval = Retrieval(tokenizer, documents, length, Settings(**settings), seed=0)
    return [each for index in indices for each in retrieval.sequences(index)]


def asked(tokenizer, encoded):
    """Each question of a sequence with the text that stands before it, from the tokens."""
    text, whole = tokenizer.decode(encoded.input_ids), encoded.example.text
    start = len(text) - len(whole)  # negative: the beginning is cut
    questions = iter(encoded.example.questions)
    prompt = 0
    for piece in encoded.example.pieces:
        if piece.role == "answer":
            question = next(questions)
            assert text[prompt : start + len(piece.text)].lstrip("\n") == question.prompt + question.trained
            yield question, text[:prompt]
        prompt = start
        start += len(piece.text)
    assert next(questions, None) is None


@pytest.mark.parametrize("task", TASKS)
def test_answers_follow_from_the_text_alone(task, tiny, documents):
    count = 0
    for each in made(tiny, documents, 1500, range(60), tasks={task: 1.0}, facts=30):
        for question, text in asked(tiny, each):
            assert answers(question.prompt, text) == {question.answer}, (question, text)
            count += 1
    assert count >= 60


def test_answers_of_mixed_tasks_follow_from_the_text_alone(tiny, documents):
    for each in made(tiny, documents, 2500, range(80)):
        for question, text in asked(tiny, each):
            assert answers(question.prompt, text) == {question.answer}, (question, text)


@pytest.mark.parametrize("length", [LEAST_TOKENS, 700, 3072])
def test_lengths_are_exact_and_weights_are_where_they_belong(length, tiny, documents, tokenizer):
    for which in (tiny, tokenizer):
        for each in made(which, documents, length, range(15), answer_weight=5.0, text_weight=0.5):
            assert len(each.input_ids) == len(each.weights) == length
            assert set(np.unique(each.weights)) <= {0.0, 0.5, 5.0}
            # Runs of answer tokens are the answers, in order.
            edges = np.flatnonzero(np.diff(np.concatenate([[0], each.weights == 5.0, [0]])))
            runs = [which.decode(each.input_ids[a:b]) for a, b in edges.reshape(-1, 2)]
            assert "".join(runs).split() == "".join(q.trained for q in each.example.questions).split()


def test_a_begin_token_stands_first(tokenizer, documents):
    """The byte-level tokenizer puts one before each text."""
    for each in made(tokenizer, documents, 600, range(5)):
        assert each.input_ids[0] == tokenizer.bos_token_id
        assert (each.input_ids[1:] != tokenizer.bos_token_id).all()


def test_a_tokenizer_without_offsets_weighs_the_same_text(tokenizer, documents):
    class Slow:
        """The same tokenizer, without the calls that only fast ones have."""

        is_fast = False

        def __call__(self, text, **options):
            assert "return_offsets_mapping" not in options
            return tokenizer(text, **options)

        def decode(self, ids, **options):
            return tokenizer.decode(ids, **options)

    fast = made(tokenizer, documents, 800, range(6))
    slow = made(Slow(), documents, 800, range(6))
    for one, other in zip(fast, slow, strict=True):
        np.testing.assert_array_equal(one.input_ids, other.input_ids)  # one token per byte, however it is cut
        np.testing.assert_array_equal(one.weights, other.weights)


def test_a_block_is_a_function_of_seed_and_index(tiny, documents):
    first, second, other = (Retrieval(tiny, documents, 600, Settings(), seed) for seed in (3, 3, 4))
    for index in (7, 0, 7):
        np.testing.assert_array_equal(first.block(index).input_ids, second.block(index).input_ids)
        np.testing.assert_array_equal(first.block(index).loss_weights, second.block(index).loss_weights)
    assert not np.array_equal(first.block(0).input_ids, first.block(1).input_ids)
    assert not np.array_equal(first.block(0).input_ids, other.block(0).input_ids)


def test_lengths_are_drawn_and_fill_a_block(tiny, documents):
    retrieval = Retrieval(tiny, documents, 3000, Settings(lengths=(256, 2000)), seed=0)
    blocks = [retrieval.block(index) for index in range(8)]
    assert all(len(block) == sum(block.segments) == 3000 for block in blocks)
    drawn = [length for block in blocks for length in block.segments]
    assert min(drawn) >= 256
    assert max(drawn) > 1000
    assert len(drawn) > 2 * len(blocks)
    assert all((block.trained == (block.loss_weights > 0)).all() for block in blocks)


def test_skip_wise_positions_jump_once_and_cover_the_target(tiny, documents):
    retrieval = Retrieval(tiny, documents, 512, Settings(), seed=0, target=4096)
    blocks = [retrieval.block(index) for index in range(60)]
    for block in blocks:
        steps = np.diff(block.positions)
        assert (steps >= 1).all()
        assert (steps > 1).sum() <= 1
        assert 0 <= block.positions[0] <= block.positions[-1] < 4096
    assert max(block.positions[-1] for block in blocks) > 3500
    assert min(block.positions[-1] for block in blocks) < 1200


def test_facts_lie_at_all_depths_and_some_near_the_beginning(tiny, documents):
    depths = []
    for each in made(tiny, documents, 2000, range(80), tasks={"lookup": 1.0}, bare=0.0, middle=0.0, early=0.3):
        template = np.flatnonzero(each.weights == 0)
        asked = int(np.flatnonzero(each.weights == 3.0)[0])
        depths += (template[template < asked - 60] / asked).tolist()
    histogram, _ = np.histogram(depths, bins=10, range=(0, 1))
    assert histogram.min() > 0.02 * histogram.sum()
    # Evenly spread facts have four tenths of theirs in the first four; many early facts fill more than one of these.
    assert histogram[:4].sum() > 0.5 * histogram.sum()


@pytest.mark.parametrize("task", ["journeys", "lookup"])
def test_more_episodes_than_there_are_keys_for(tiny, documents, task, monkeypatch):
    """As sequences of 262,144 tokens ask for: what is left of places or towns is used, and the rest is left out."""
    monkeypatch.setattr(source, "_TOKENS_PER_EPISODE", 60)
    monkeypatch.setattr(vocabulary, "_MOST_TRIES", 300)
    for each in made(tiny, documents, 8000, range(3), tasks={task: 1.0}):
        assert len(each.example.tasks) >= 5
        assert len(each.example.questions) >= 5


def test_no_key_is_drawn_twice_and_the_last_one_is_found():
    draw = Draw(random.Random(0))
    assert sorted(draw.several(lambda: draw.rng.choice("abc"), 3)) == ["a", "b", "c"]
    with pytest.raises(NoneLeftError):
        draw.fresh(lambda: draw.rng.choice("abc"))


def test_without_documents_there_are_lists_of_facts(tiny):
    for each in made(tiny, None, 1024, range(10)):
        assert set(np.unique(each.weights)) == {0.0, 3.0}


def test_facts_break_no_word(tiny, documents):
    """Taking the facts out again leaves the words of the documents."""
    known = set(" ".join(prose(seed) for seed in range(4)).split())
    for each in made(tiny, documents, 1200, range(30), bare=0.0):
        around = "".join(piece.text for piece in each.example.pieces if piece.role == "text").split()
        assert sum(word not in known for word in around) <= 4  # cut at either end of what was read


def test_what_can_not_be_made_is_refused(tiny, documents):
    with pytest.raises(DataError, match="lengths from 256"):
        Retrieval(tiny, documents, 100, Settings(), 0)
    with pytest.raises(DataError, match="in blocks of 1000"):
        Retrieval(tiny, documents, 1000, Settings(lengths=(512, 2000)), 0)
    with pytest.raises(DataError, match=r"nedle can't be made; choose from single, lookup"):
        Retrieval(tiny, documents, 1000, Settings(tasks={"nedle": 1.0}), 0)
    with pytest.raises(DataError, match="no weight"):
        Retrieval(tiny, documents, 1000, Settings(tasks={"single": 0.0}), 0)


def strings_of(package):
    """Every string in the source of a package that is no docstring."""
    for path in sorted(Path(package.__file__).parent.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                yield node.value


def five_words(text):
    words = re.findall(r"[a-z0-9']+", text.lower())
    return {tuple(words[at : at + 5]) for at in range(len(words) - 4)}


def test_no_template_of_the_evaluation(tiny):
    tested = set().union(*(five_words(text) for text in strings_of(evaluation)))
    assert ("there", "is", "an", "important", "info") in tested
    trained = set()
    for task in TASKS.values():
        for seed in range(150):
            episode = task(Draw(random.Random(seed)), 12, lambda _least, _most: None)
            for text in (*(fact.text for fact in episode.facts), *(q.prompt + q.trained for q in episode.questions)):
                trained |= five_words(text)
    for text in (*INTRODUCTIONS, *_HEADINGS):
        trained |= five_words(text)
    assert len(trained) > 5000
    assert not trained & tested


def test_no_key_of_the_evaluation():
    mine = {*vocabulary.NOUNS, *vocabulary.ADJECTIVES, *vocabulary.COMMON, *vocabulary.PLACES, *vocabulary.NAMES}
    mine |= {*vocabulary.TOWNS}
    theirs = {word.lower() for word in (*NOUNS, *ADJECTIVES, *VERBS, *_CITIES)} | BABILONG
    assert not {word.lower() for word in mine} & theirs
    # Invented words are drawn, from some hundred thousand; none is the evaluation's.
    draw = Draw(random.Random(0))
    assert not {draw.invented() for _ in range(100_000)} & theirs


def test_no_value_of_the_evaluation_can_be_drawn():
    """Needles, passkeys and variables have numbers of five digits, RULER's keys of seven, or UUIDs."""
    draw = Draw(random.Random(0))
    makers = [*VALUES.values(), _number, _long_number, _string]
    values = [make(draw) for make in makers for _ in range(3000)]
    assert not [value for value in values if re.search(r"(?<!\w)(\d{5}|\d{7})(?!\w)", value)]
    uuid = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
    assert not [value for value in values if uuid.search(value)]
    # Variables of the evaluation are three or five capital letters.
    names = [key for kind in ("label", "identifier") for key in draw.keys(kind, 1000)]
    names += [name for seed in range(200) for name in _names(Draw(random.Random(seed)), 20)]
    names += [_name(draw) for _ in range(3000)]
    assert len({name[0].isupper() for name in names}) == 2
    assert not [name for name in names if re.fullmatch(r"[A-Z]{3}|[A-Z]{5}", name)]


def test_hardly_a_coded_word_of_the_evaluation_can_be_drawn():
    """RULER's are any six small letters, which no list of words avoids; of a thousand, training has less than one."""
    draw = Draw(random.Random(0))
    words = {draw.invented() for _ in range(400_000)} | {*WORDS, *vocabulary.COMMON, *vocabulary.NOUNS}
    assert sum(len(word) == 6 for word in words) < 26**6 / 1000


def test_no_lookup_of_the_evaluation():
    fields = {"k": "name", "o": "numbers", "v": ""}
    forms = {form.format(**fields).rstrip() for statement, asked in STYLES for form in (statement, *asked)}
    theirs = {form.format(key="name", number="").rstrip() for form in (LOOKUPS.fact, LOOKUPS.question)}
    assert not forms & theirs
    assert not set(WORDS) & set(LOOKUPS.keys)


def test_every_task_has_a_share_but_the_one_for_models_of_code():
    assert TASKS.keys() - SHARES.keys() == {"python"}
    assert SHARES.keys() <= TASKS.keys()
    assert sum(SHARES.values()) == pytest.approx(1)
