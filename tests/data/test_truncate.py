from hypothesis import given
from hypothesis import strategies as st

from lengthen.data.truncate import cut_middle, token_spans


class Slow:
    """A tokenizer of words that can't tell where they are."""

    is_fast = False

    def __call__(self, text, **_options):
        return {"input_ids": text.split()}


@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 3))
def test_what_is_kept_is_at_both_ends_and_just_fits(length, excess, seam):
    """Each character is a token, and where the ends of a cut meet there are `seam` tokens more."""
    spans = [(place, place + 1) for place in range(length)]
    cut = cut_middle(spans, excess, lambda left, right, _tokens: excess - (right - left) + seam)
    if excess + seam >= length:
        assert cut is None
        return
    left, right, tokens = cut
    assert right - left == tokens == excess + (seam if seam else 0)
    assert 0 <= left - (length - right) <= 1


def test_half_a_character_of_several_tokens_is_on_neither_side_twice():
    spans = [(0, 1), (0, 1), (0, 1), (1, 2)]
    left, right, _ = cut_middle(spans, 1, lambda left, right, _tokens: 0)
    assert left <= right


def test_spans_cover_a_text(tokenizer):
    text = "Two words, and \u00fc."
    spans = token_spans(tokenizer, text)
    assert spans[0][0] == 0
    assert spans[-1][1] == len(text)
    assert token_spans(Slow(), "a bc def") == [(0, 3), (3, 5), (5, 8)]
    assert token_spans(Slow(), "") == []
