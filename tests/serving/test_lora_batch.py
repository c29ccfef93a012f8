"""The operator equals a loop over rows, for any mix of adapters, ranks and lengths."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthen.errors import ModelError
from lengthen.serving.engine.lora_batch import LoraMatrices, LoraStack
from lengthen.serving.engine.routing import Routing

IN, OUT, SLOTS, RANK = 12, (8, 4, 6), 12, 5
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.06, torch.float64: 1e-12}


def adapter(generator, ranks):
    """Random matrices for each layer; rank 0 for a layer that the adapter leaves alone."""

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64) * 0.3

    return [
        LoraMatrices(random(rank, IN), random(out, rank), 0.5 + rank / 4) if rank else None
        for rank, out in zip(ranks, OUT, strict=True)
    ]


def reference(outputs, x, slots, lengths, adapters):
    """One row at a time, in float64."""
    of_row = [slot for slot, length in zip(slots, lengths, strict=True) for _ in range(length)]
    results = []
    for index, y in enumerate(outputs):
        result = y.double().clone()
        for row, slot in enumerate(of_row):
            layer = None if slot is None else adapters[slot][index]
            if layer is not None:
                result[row] += layer.scale * (layer.b @ (layer.a @ x[row].double()))
        results.append(result)
    return results


slot = st.one_of(st.none(), st.integers(0, SLOTS - 1))


@settings(max_examples=100)
@given(
    data=st.data(),
    dtype=st.sampled_from(sorted(TOLERANCE, key=str)),
    is_decoding=st.booleans(),
    seed=st.integers(0, 2**60),
)
def test_each_row_gets_its_own_adapter(data, dtype, is_decoding, seed):
    slots = data.draw(st.lists(slot, min_size=1, max_size=40))
    length = st.just(1) if is_decoding else st.integers(1, 5)
    lengths = data.draw(st.lists(length, min_size=len(slots), max_size=len(slots)))
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.randint(RANK + 1, (SLOTS, len(OUT)), generator=generator).tolist()
    stack, adapters = LoraStack(IN, OUT, SLOTS, RANK, dtype), []
    for index in range(SLOTS):
        adapters.append(adapter(generator, ranks[index]))
        stack.put(index, adapters[-1])
    rows = sum(lengths)
    x = torch.randn(rows, IN, generator=generator).to(dtype)
    outputs = [torch.randn(rows, out, generator=generator).to(dtype) for out in OUT]
    expected = reference(outputs, x, slots, lengths, adapters)
    before = [y.clone() for y in outputs]
    routing = Routing.of(slots, lengths)
    stack.add_(outputs, x, routing)
    for y, wanted in zip(outputs, expected, strict=True):
        torch.testing.assert_close(y.double(), wanted, atol=TOLERANCE[dtype] * 3, rtol=TOLERANCE[dtype])
    alone = [
        row for row, each in enumerate(x for x, n in zip(slots, lengths, strict=True) for _ in range(n)) if each is None
    ]
    for y, old in zip(outputs, before, strict=True):
        assert torch.equal(y[alone], old[alone]), "rows without an adapter are untouched, to the bit"


@settings(max_examples=40)
@given(slots=st.lists(slot, min_size=2, max_size=32), seed=st.integers(0, 1000))
def test_a_row_s_result_does_not_depend_on_the_others(slots, seed):
    """To float64's precision: the ways of computing sum in different orders."""
    generator = torch.Generator().manual_seed(seed)
    stack = LoraStack(IN, OUT, SLOTS, RANK, torch.float64)
    for index in range(SLOTS):
        stack.put(index, adapter(generator, (3, 5, 1)))
    x = torch.randn(len(slots), IN, generator=generator, dtype=torch.float64)
    together = [torch.zeros(len(slots), out, dtype=torch.float64) for out in OUT]
    stack.add_(together, x, Routing.of(slots))
    for row, each in enumerate(slots):
        alone = [torch.zeros(1, out, dtype=torch.float64) for out in OUT]
        stack.add_(alone, x[row : row + 1], Routing.of([each]))
        for a, b in zip(alone, together, strict=True):
            torch.testing.assert_close(a[0], b[row], atol=1e-12, rtol=0)


@given(
    slots=st.lists(slot, min_size=1, max_size=40),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    data=st.data(),
    seed=st.integers(0, 2**60),
)
def test_grouped_products_give_each_row_its_own_adapter(slots, dtype, data, seed):
    check_grouped(slots, data.draw(st.lists(st.integers(1, 5), min_size=len(slots), max_size=len(slots))), dtype, seed)
    check_grouped(slots, [1] * len(slots), dtype, seed)


def check_grouped(slots, lengths, dtype, seed):
    """With sizes of whole 16 bytes, as kernels want them, beside the other ways and the loop over rows."""
    outs, inputs, rank = (16, 8, 24), 32, 8
    generator = torch.Generator().manual_seed(seed)
    stack, adapters = LoraStack(inputs, outs, SLOTS, rank, dtype), []
    for index in range(SLOTS):
        random = [[torch.randn(shape, generator=generator) * 0.3 for shape in ((8, 32), (out, 8))] for out in outs]
        adapters.append([LoraMatrices(a.double(), b.double(), 0.5) for a, b in random])
        stack.put(index, adapters[-1])
    rows = sum(lengths)
    x = torch.randn(rows, inputs, generator=generator).to(dtype)
    before = [torch.randn(rows, out, generator=generator).to(dtype) for out in outs]
    outputs = [y.clone() for y in before]
    routing = Routing.of(slots, lengths, grouped=SLOTS)
    is_one_product = len(set(slots) - {None}) < 2 or routing.slots is not None
    assert (routing.ends is None) == is_one_product
    assert routing.filled is None, "rows that do not lie in order are grouped"
    stack.add_(outputs, x, routing)
    for y, wanted in zip(outputs, reference(before, x, slots, lengths, adapters), strict=True):
        torch.testing.assert_close(y.double(), wanted, atol=TOLERANCE[dtype] * 3, rtol=TOLERANCE[dtype])


WAYS = {
    "one adapter": ([3, 3, 3], Routing(3, ((3, 0, 3),))),
    "one adapter and none, apart": ([3, None, 3], "segments, gathered"),
    "far apart": ([0, 11, 0, 11], "segments, gathered"),
    "all once, in order": ([2, 3, 4], Routing(3, slots=(2, 5))),
    "all twice, in order": ([2, 2, 3, 3], Routing(4, slots=(2, 4))),
    "in any order": ([4, 2, 3, 2], "batched, gathered"),
    "a slot between": ([2, 4, 5], "batched, gathered"),
    "more of one than are batched": ([0] * 70 + [1], Routing(71, ((0, 0, 70), (1, 70, 71)))),
    "no adapter": ([None, None], Routing(2)),
}


@pytest.mark.parametrize("kind", WAYS)
def test_each_way_of_computing(kind):
    slots, expected = WAYS[kind]
    routing = Routing.of(slots)
    if isinstance(expected, Routing):
        assert routing == expected
    else:
        assert (routing.slots is not None) == expected.startswith("batched")
        assert routing.order is not None
    generator = torch.Generator().manual_seed(0)
    stack = LoraStack(IN, OUT, SLOTS, RANK)
    adapters = [adapter(generator, (5, 2, 4)) for _ in range(SLOTS)]
    for index, each in enumerate(adapters):
        stack.put(index, each)
    x = torch.randn(len(slots), IN, generator=generator)
    outputs = [torch.zeros(len(slots), out) for out in OUT]
    wanted = reference(outputs, x, slots, [1] * len(slots), adapters)
    stack.add_(outputs, x, routing)
    for y, each in zip(outputs, wanted, strict=True):
        torch.testing.assert_close(y.double(), each, atol=1e-5, rtol=0)


def test_shapes_of_a_model_s_activations():
    """(B, T, features) as layers have them, in halves as a layer at a time is computed."""
    generator = torch.Generator().manual_seed(0)
    stack = LoraStack(IN, OUT, 2, RANK)
    adapters = [adapter(generator, (5, 0, 2)), adapter(generator, (1, 1, 1))]
    for index, each in enumerate(adapters):
        stack.put(index, each)
    x = torch.randn(3, 7, IN, generator=generator)
    routing = Routing.of([1, None, 0], [7, 7, 7])
    low = stack.shrink(x, routing)
    for index, out in enumerate(OUT):
        y = torch.zeros(3, 7, out)
        stack.expand_(y, low, index, routing)
        expected = reference([torch.zeros(21, each) for each in OUT], x.view(21, IN), [1, None, 0], [7, 7, 7], adapters)
        torch.testing.assert_close(y.view(21, out).double(), expected[index], atol=1e-5, rtol=0)


@pytest.mark.parametrize("others", [[], [1, 2, 3, 4, 5, 6, 7]])
def test_a_slot_is_emptied_and_used_again(others):
    """In both ways of computing: alone, and in one product with others."""
    generator = torch.Generator().manual_seed(0)
    stack = LoraStack(IN, OUT, 8, RANK)
    adapters = {index: adapter(generator, (5, 5, 5)) for index in range(8)}
    for index, each in adapters.items():
        stack.put(index, each)
    slots = [0, *others]
    x = torch.randn(len(slots), IN, generator=generator)

    def check():
        outputs = [torch.zeros(len(slots), out) for out in OUT]
        expected = reference(outputs, x, slots, [1] * len(slots), adapters)
        stack.add_(outputs, x, Routing.of(slots))
        for y, wanted in zip(outputs, expected, strict=True):
            torch.testing.assert_close(y.double(), wanted, atol=1e-5, rtol=0)

    check()
    adapters[0] = adapter(generator, (2, 0, 1))  # nothing of the larger one before may be left
    stack.put(0, adapters[0])
    check()
    adapters[0] = [None, None, None]
    stack.clear(0)
    check()


@pytest.mark.parametrize("others", [[], [1, 2, 3, 4, 5, 6, 7]])
def test_what_overflows_stays_in_its_own_row(others):
    generator = torch.Generator().manual_seed(0)
    stack = LoraStack(IN, OUT, 8, RANK, torch.float16)
    for index in range(8):
        stack.put(index, adapter(generator, (5, 5, 5)))
    slots = [0, *others]
    x = torch.randn(len(slots), IN, generator=generator).half()
    stack.put(0, [LoraMatrices(torch.full((5, IN), 6e4), layer.b, 1.0) for layer in adapter(generator, (5, 5, 5))])
    outputs = [torch.zeros(len(slots), out, dtype=torch.float16) for out in OUT]
    x[0] = 6e4
    stack.add_(outputs, x, Routing.of(slots))
    for y in outputs:
        assert not torch.isfinite(y[0]).any()
        assert torch.isfinite(y[1:]).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_refused(value):
    stack = LoraStack(IN, OUT, 1, RANK)
    layers = adapter(torch.Generator().manual_seed(0), (5, 5, 5))
    layers[1].b[0, 0] = value
    with pytest.raises(ModelError, match="infinite or NaN"):
        stack.put(0, layers)
    y = torch.zeros(1, OUT[0])
    stack.expand_(y, stack.shrink(torch.ones(1, IN), Routing.of([0])), 0, Routing.of([0]))
    assert not y.any(), "the slot is as it was"


def test_memory_of_a_slot_is_the_adapter_s_own():
    stack = LoraStack(576, (576, 192, 192), 4, 16, torch.bfloat16)
    parameters = 16 * (3 * 576 + 576 + 192 + 192)
    assert stack.nbytes == 4 * 2 * parameters
