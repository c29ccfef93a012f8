"""Layouts of all kinds, for property-based tests."""

from itertools import pairwise

from hypothesis import strategies as st


@st.composite
def layouts(draw):
    """Documents of each row, with padding at the left or right end."""
    length = draw(st.integers(1, 40))
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        left, right = draw(st.integers(0, length - 1)), 0
        if draw(st.booleans()):
            left, right = right, left
        cuts = draw(st.lists(st.integers(left + 1, length - right), max_size=3)) if left + 1 <= length - right else []
        points = sorted({left, *cuts, length - right})
        rows.append([(a, b - a) for a, b in pairwise(points)])
    return length, tuple(map(tuple, rows))
