"""Perplexity equals the definitions, worked out again here with whole logits and with ``model(labels=...)``."""

import importlib
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPTNeoXConfig,
    GraniteConfig,
    HyperCLOVAXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
)

import lengthen.evaluation
from lengthen._compat import with_cache
from lengthen.data.stdlib import stdlib_documents
from lengthen.decoding.prefill import default_chunk, hidden_chunks, new_cache, prefill
from lengthen.errors import ContextError, DataError, LengthenError, ModelError
from lengthen.evaluation import perplexity, token_losses
from lengthen.evaluation.bootstrap import bootstrap_interval
from lengthen.evaluation.document_losses import document_losses
from upstream_warnings import prefix_tuning_warns

# peft 0.21.2 asks transformers 5.23 for a property that is on its way out; remove once peft has followed.
pytestmark = [
    pytest.mark.invariants,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]

MODULE = importlib.import_module("lengthen.evaluation.sliding_perplexity")
LOSSES = importlib.import_module("lengthen.evaluation.losses")
LOSSES = importlib.import_module("lengthen.evaluation.losses")

VOCABULARY = 64
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
CONFIGS = {
    "llama": LlamaConfig(**COMMON, num_key_value_heads=2),
    "llama-tied": LlamaConfig(**COMMON, num_key_value_heads=2, tie_word_embeddings=True),
    "gpt_neox": GPTNeoXConfig(**COMMON),
    # Small caps and scales, so that leaving one out changes the result.
    "gemma2": Gemma2Config(**COMMON, num_key_value_heads=2, head_dim=8, final_logit_softcapping=1.0, sliding_window=16),
    "cohere": CohereConfig(**COMMON, num_key_value_heads=2, logit_scale=0.25),
    "granite": GraniteConfig(**COMMON, num_key_value_heads=2, logits_scaling=3.0),
}


def build(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # a fresh model is too sure of nothing: make its losses differ
            if parameter.ndim > 1:
                parameter.mul_(5)
    return model


@pytest.fixture(scope="module")
def llama():
    return build(CONFIGS["llama"])


def random_tokens(length, seed=0):
    return np.random.default_rng(seed).integers(0, VOCABULARY, length).astype(np.uint16)


def full_losses(model, ids):
    """Each token's loss but the first one's, from whole logits."""
    ids = torch.from_numpy(np.asarray(ids).astype(np.int64))[None]
    with torch.no_grad():
        log_probabilities = model(input_ids=ids).logits[0].double().log_softmax(-1)
    return -log_probabilities[:-1].gather(1, ids[0, 1:, None])[:, 0].numpy()


def strided_by_hand(model, ids, context, stride):
    """The guide's loop, token by token: position -> loss. Windows begin with BOS (0) where the document does."""
    losses = {}
    for begin in range(0, len(ids), stride):
        # One token more to the left where the guide would leave a window's first token unscored.
        start = max(begin - 1, 0) if stride == context else begin
        end = min(begin + context, len(ids))
        if end - start >= 2:
            window = ids[start:end].copy()
            if ids[0] == 0:
                window[0] = 0
            for position, loss in enumerate(full_losses(model, window), start + 1):
                losses.setdefault(position, loss)
    return losses


def published_by_hand(model, documents, context, step):
    """LongLoRA's `get_as_batch` and `evaluate`, read again."""
    means = []
    for ids in documents:
        starts = list(range(0, len(ids) - context, step))
        if starts:
            starts.pop()
        for start in starts:
            x = torch.from_numpy(ids[start : start + context].astype(np.int64))[None]
            with torch.no_grad():
                means.append(model(input_ids=x, labels=x).loss.item())
    return means


@pytest.mark.parametrize("name", CONFIGS)
def test_strided_equals_whole_logits_for_every_head(name):
    model, ids = build(CONFIGS[name]), random_tokens(50)
    result = perplexity(model, ids, context=16, stride=6)
    by_hand = strided_by_hand(model, ids, 16, 6)
    assert sorted(by_hand) == list(range(1, 50))
    assert result.tokens == 49
    assert result.loss == pytest.approx(np.mean(list(by_hand.values())), abs=2e-5)
    assert result.perplexity == math.exp(result.loss)
    assert abs(result.loss - math.log(VOCABULARY)) > 1e-3, "a head that gives nothing would prove nothing"


@settings(max_examples=25)
@given(length=st.integers(2, 40), context=st.integers(2, 24), data=st.data())
def test_strided_equals_whole_logits_for_any_size(llama, length, context, data):
    stride = data.draw(st.integers(1, context))
    ids = random_tokens(length, seed=length)
    result = perplexity(llama, ids, context, stride, bucket=1, batch_size=3)
    by_hand = strided_by_hand(llama, ids, context, stride)
    assert [entry["from"] for entry in result.by_position] == sorted(by_hand) == list(range(1, length))
    for entry in result.by_position:
        assert math.log(entry["perplexity"]) == pytest.approx(by_hand[entry["from"]], abs=5e-5)


def recorded_windows(tokens, context, *args, **kwargs):
    """Every window as (tokens read, tokens scored), from a document that is 0, 1, 2, ..."""
    seen = []

    def record(model, input_ids, score_from, *_):
        seen.extend((row.tolist(), row[score_from:].tolist()) for row in input_ids)
        return torch.zeros(input_ids.shape[0], input_ids.shape[1] - score_from)

    class Embedded(torch.nn.Module):
        config = LlamaConfig(bos_token_id=None)

        def get_input_embeddings(self):
            return torch.nn.Embedding(1000, 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LOSSES, "token_losses", record)
        patch.setattr(MODULE, "check_head", lambda model, ids: None)
        result = perplexity(Embedded(), tokens, context, *args, **kwargs)
    assert result.windows == len(seen)
    return seen


@settings(max_examples=200)
@given(length=st.integers(2, 300), context=st.integers(2, 90), data=st.data())
def test_strided_scores_each_token_once_with_the_promised_context(length, context, data):
    stride = data.draw(st.integers(1, context))
    score_from = data.draw(st.integers(0, length - 1))
    windows = recorded_windows(np.arange(length), context, stride, score_from=score_from, batch_size=2)
    scored = [token for _, tokens in windows for token in tokens]
    assert sorted(scored) == list(range(max(score_from, 1), length))
    for read, tokens in windows:
        assert len(read) - 1 <= context, "the last token of a window is not read"
        assert len(read) <= context or stride == context
        for token in tokens:
            assert token - read[0] >= min(max(context - stride, 1), token)


def test_score_from_changes_no_token_s_loss(llama):
    ids = random_tokens(60)
    whole = perplexity(llama, ids, 16, 4, bucket=1).by_position
    part = perplexity(llama, ids, 16, 4, bucket=1, score_from=23).by_position
    assert [entry["from"] for entry in part] == list(range(23, 60))
    for ours, theirs in zip(part, whole[22:], strict=True):
        assert ours["perplexity"] == pytest.approx(theirs["perplexity"], rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_longlora_equals_the_published_procedure(llama, batch_size):
    documents = [random_tokens(900, 1), random_tokens(30, 2), random_tokens(600, 3)]
    means = published_by_hand(llama, documents, 32, 256)
    result = perplexity(llama, documents, 32, protocol="longlora", batch_size=batch_size)
    assert len(means) == result.windows == 3 + 2
    assert result.stride == 256
    assert result.tokens == 5 * 31
    assert result.loss == pytest.approx(np.mean(means), abs=2e-5)
    assert [entry["document"] for entry in result.per_document] == [0, 2]
    assert result.per_document[0]["loss"] == pytest.approx(np.mean(means[:3]), abs=2e-5)


@pytest.mark.parametrize("length", [97, 128, 129, 130])
def test_longqlora_equals_the_published_procedure(llama, length):
    ids = random_tokens(length)
    means = published_by_hand(llama, [ids], 32, 32)
    result = perplexity(llama, ids, 32, 32, "longqlora")
    assert len(means) == result.windows
    assert result.stride == 32
    assert result.loss == pytest.approx(np.mean(means), abs=2e-5)
    assert result.by_position[0]["from"] == 0
    assert result.by_position[-1]["to"] == 32, "positions are those in the window"


@pytest.mark.parametrize("protocol", ["strided", "longlora", "longqlora"])
def test_buckets_and_documents_pool_back_to_the_total(llama, protocol):
    documents = [random_tokens(700, 1), random_tokens(90, 2), random_tokens(555, 3)]
    result = perplexity(llama, documents, 24, protocol=protocol, batch_size=16)
    for parts in (result.by_position, result.per_document):
        assert sum(part["tokens"] for part in parts) == result.tokens
        pooled = sum(math.log(part["perplexity"]) * part["tokens"] for part in parts) / result.tokens
        assert pooled == pytest.approx(result.loss, rel=1e-9)
    assert len(result.by_position) <= 8
    for before, after in zip(result.by_position, result.by_position[1:], strict=False):
        assert before["to"] == after["from"]
    assert json.loads(json.dumps(result.to_json()))["by_position"] == result.by_position


def test_documents_never_mix(llama):
    documents = [random_tokens(40, 1), random_tokens(1, 2), random_tokens(25, 3)]
    pooled = perplexity(llama, documents, 16, batch_size=4)
    alone = [perplexity(llama, documents[i], 16) for i in (0, 2)]
    assert [entry["document"] for entry in pooled.per_document] == [0, 2]
    for entry, single in zip(pooled.per_document, alone, strict=True):
        assert entry["tokens"] == single.tokens
        assert entry["loss"] == pytest.approx(single.loss, abs=1e-5)
    assert pooled.loss == pytest.approx(sum(s.loss * s.tokens for s in alone) / pooled.tokens, abs=1e-5)


def test_all_kinds_of_token_containers_are_read_alike(llama):
    class Store:
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return [ids.astype(np.uint32)][index]

    ids = random_tokens(30)
    kinds = [ids.tolist(), torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(ids.astype(np.int64))[None], [ids]]
    losses = {perplexity(llama, tokens, 16).loss for tokens in [ids, *kinds, Store()]}
    assert len(losses) == 1


def test_no_tensor_of_all_logits_is_made(llama, monkeypatch):
    monkeypatch.setattr(LOSSES, "_ROWS", 32)
    rows, reads = [], []
    handles = [
        llama.lm_head.register_forward_hook(lambda m, i, output: rows.append(output.numel() // VOCABULARY)),
        llama.model.register_forward_hook(lambda m, i, output: reads.append(output[0].shape[1])),
    ]
    try:
        perplexity(llama, random_tokens(600), 512, 100, batch_size=2)
    finally:
        for handle in handles:
            handle.remove()
    assert max(rows) == 32
    assert sum(rows) == 599 + 16 + 16, "the head runs for scored tokens and for the check only"
    assert reads == [16, 16, 511, 511 - 100 + 88], "the decoder runs once per window"


def test_chunks_are_small_for_a_large_vocabulary(llama, monkeypatch):
    ids = torch.from_numpy(random_tokens(40).astype(np.int64))[None]
    whole = token_losses(llama, ids, 5)
    monkeypatch.setattr(LOSSES, "_NUMBERS_ON_CPU", 3 * VOCABULARY)
    assert whole.shape == (1, 35)
    assert whole.dtype == torch.float32
    torch.testing.assert_close(token_losses(llama, ids, 5), whole)
    np.testing.assert_allclose(whole[0].numpy(), full_losses(llama, ids[0])[4:], atol=5e-5)


CHUNKED = {
    **CONFIGS,
    # A window shorter than a chunk and one longer, both shorter than the input.
    "mistral": MistralConfig(**COMMON, num_key_value_heads=2, sliding_window=11),
}


@pytest.mark.parametrize("chunk", [1, 7, 16, 49])
@pytest.mark.parametrize("name", CHUNKED)
def test_chunks_change_no_loss(name, chunk):
    model = build(CHUNKED[name])
    ids = torch.from_numpy(np.stack([random_tokens(50, 1), random_tokens(50, 2)]).astype(np.int64))
    told = []
    for score_from in (1, 20):
        told.clear()
        chunked = token_losses(model, ids, score_from, chunk, told.append)
        torch.testing.assert_close(chunked, token_losses(model, ids, score_from), rtol=0, atol=5e-5)
        assert sum(told) == 2 * 49
        assert len(told) == math.ceil(49 / chunk)


@pytest.mark.parametrize("protocol", ["strided", "longlora", "longqlora"])
def test_perplexity_in_chunks_is_the_same(llama, protocol):
    documents = [random_tokens(350, 1), random_tokens(400, 2)]
    whole = perplexity(llama, documents, 48, protocol=protocol)
    chunked = perplexity(llama, documents, 48, protocol=protocol, chunk=13, batch_size=3)
    assert (whole.chunk, chunked.chunk) == (48, 13)
    assert chunked.loss == pytest.approx(whole.loss, abs=1e-5)
    assert [entry["perplexity"] for entry in chunked.by_position] == pytest.approx(
        [entry["perplexity"] for entry in whole.by_position], rel=1e-4
    )


def test_the_decoder_never_reads_more_than_a_chunk(llama):
    reads = []
    handle = llama.model.register_forward_hook(lambda m, i, output: reads.append(output[0].shape[1]))
    try:
        token_losses(llama, torch.from_numpy(random_tokens(200).astype(np.int64))[None], 1, 60)
    finally:
        handle.remove()
    assert reads[-4:] == [60, 60, 60, 19]
    assert sum(reads[:-4]) == 32, "the check reads 16 tokens whole and in two chunks"


def test_the_default_chunk_is_whole_for_short_inputs_and_bounded_for_long_ones(llama):
    assert [default_chunk(llama, length) for length in (1, 8192)] == [1, 8192]
    assert default_chunk(llama, 8193) == default_chunk(llama, 32768) == 4096
    for length in (65536, 131072, 10**6, 10**9):
        assert 1 <= default_chunk(llama, length) <= max(1, 2**27 // length)


def test_a_cache_continues_what_was_read(llama):
    ids = torch.from_numpy(random_tokens(60).astype(np.int64))[None]
    told = []
    cache = prefill(llama, ids[:, :35], 10, on_chunk=told.append)
    assert told == [10, 20, 30, 35]
    assert prefill(llama, ids[:, 35:-1], 10, cache, told.append) is cache
    assert told[4:] == [10, 20, 24]
    assert cache.get_seq_length() == 59
    out = llama.generate(ids, max_new_tokens=4, do_sample=False, **with_cache(cache))
    assert out.tolist() == llama.generate(ids, max_new_tokens=4, do_sample=False).tolist()


def test_chunks_of_what_can_not_be_read_in_chunks_are_refused(llama):
    ids = random_tokens(60)
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    dynamic = build(LlamaConfig(**COMMON, num_key_value_heads=2, rope_parameters=rope))
    assert default_chunk(dynamic, 131072) == 131072
    assert perplexity(dynamic, ids, 32).tokens == 59
    with pytest.raises(ContextError, match="changes with the length"):
        perplexity(dynamic, ids, 32, chunk=16)
    mamba = build(MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2))
    assert perplexity(mamba, ids, 32).tokens == 59
    with pytest.raises(ModelError, match="in chunks"):
        perplexity(mamba, ids, 32, chunk=16)
    with pytest.raises(LengthenError, match="chunk is 0"):
        next(hidden_chunks(llama, torch.zeros(1, 4), 0, new_cache(llama)))


def test_an_interval_is_over_documents_and_repeats(llama):
    documents = [random_tokens(length, length) for length in (90, 60, 100, 80, 1)]
    result = perplexity(llama, documents, 16)
    assert result.interval == perplexity(llama, documents, 16).interval
    assert result.interval["over"] == "documents"
    assert result.interval["units"] == 4, "a document without a scored token is no unit"
    losses = [entry["perplexity"] for entry in result.per_document]
    assert min(losses) <= result.interval["low"] < result.perplexity < result.interval["high"] <= max(losses)


@pytest.mark.parametrize(("protocol", "units"), [("strided", 25), ("longlora", 2), ("longqlora", 23)])
def test_a_single_document_s_interval_is_over_its_stretches(llama, protocol, units):
    result = perplexity(llama, random_tokens(800), 32, protocol=protocol, batch_size=8)
    assert result.interval["over"] == "stretches"
    assert result.interval["units"] == units
    assert result.interval["low"] <= result.perplexity <= result.interval["high"]


def test_a_single_stretch_has_no_interval(llama):
    assert perplexity(llama, random_tokens(30), 32).interval is None


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """60 samples of 60 documents of different lengths, whose true mean is known."""
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        counts = generator.integers(50, 150, 60)
        sums = counts * generator.normal(3.0, 0.5, 60)
        low, high = bootstrap_interval(sums, counts)
        covered += low <= 3.0 <= high
    assert 51 <= covered <= 60


@settings(max_examples=20)
@given(length=st.integers(3, 60), data=st.data())
def test_the_gain_is_what_the_same_tokens_lose_in_a_short_context(llama, length, data):
    context = data.draw(st.integers(3, 40))
    short = data.draw(st.integers(2, context - 1))
    score_from = data.draw(st.integers(0, length - 1))
    ids = random_tokens(length, seed=length)
    result = perplexity(llama, ids, context, score_from=score_from, short_context=short)
    alone = perplexity(llama, ids, short, score_from=score_from)
    assert alone.tokens == result.tokens
    assert result.gain["short_context"] == short
    assert result.gain["loss_short"] == pytest.approx(alone.loss, abs=1e-6)
    assert result.gain["gain"] == pytest.approx(alone.loss - result.loss, abs=1e-6)
    for ours, before, after in zip(result.gain["by_position"], alone.by_position, result.by_position, strict=True):
        assert ours["tokens"] == before["tokens"]
        assert ours["gain"] == pytest.approx(math.log(before["perplexity"] / after["perplexity"]), abs=1e-6)


@settings(max_examples=25)
@given(length=st.integers(2, 40), context=st.integers(2, 24), data=st.data())
def test_windows_of_documents_that_begin_with_bos_begin_with_it(llama, length, context, data):
    """In every protocol of ours and with every context alike; in none of the published ones."""
    stride = data.draw(st.integers(1, context))
    with_bos, without = random_tokens(length, seed=length), random_tokens(length, seed=length + 100)
    with_bos[0], without[0] = 0, 5
    result = perplexity(llama, [with_bos, without], context, stride, batch_size=3)
    assert result.bos_token_id == 0
    assert result.tokens == 2 * (length - 1), "what is put in is not scored, and nothing is lost by it"
    for ids, found in zip((with_bos, without), result.per_document, strict=True):
        by_hand = strided_by_hand(llama, ids, context, stride)
        assert found["loss"] == pytest.approx(np.mean(list(by_hand.values())), abs=5e-5)
        kept = document_losses(llama, [ids], context)[0][1:]
        assert kept.mean() == pytest.approx(perplexity(llama, ids, context).loss, abs=5e-5)
    assert perplexity(llama, without, context, stride).bos_token_id is None
    if context >= 3:
        gain = perplexity(llama, with_bos, context, short_context=2).gain
        assert gain["loss_short"] == pytest.approx(perplexity(llama, with_bos, 2).loss, abs=1e-6)


def test_published_protocols_put_no_bos_in(llama):
    ids = random_tokens(130)
    ids[0] = 0
    result = perplexity(llama, ids, 32, protocol="longqlora")
    assert result.bos_token_id is None
    assert result.loss == pytest.approx(np.mean(published_by_hand(llama, [ids], 32, 32)), abs=2e-5)


def test_the_shipped_base_gains_from_its_context():
    """Real text: a longer context helps, and more than by chance."""
    model, tokenizer = lengthen.load("tiny", "float32")
    texts = [path.read_text(encoding="utf-8") for path in list(stdlib_documents("validation"))[:6]]
    documents = [tokenizer(text, verbose=False)["input_ids"][:600] for text in texts]
    gain = perplexity(model, documents, 256, short_context=16, batch_size=4).gain
    assert 0 < gain["low"] < gain["gain"] < gain["high"]
    assert json.loads(json.dumps(gain)) == gain


@pytest.mark.parametrize("save", [None, ["embed_tokens", "lm_head"]])
def test_a_peft_model_equals_its_merge(save):
    model = get_peft_model(build(CONFIGS["llama"]), LoraConfig(target_modules="all-linear", modules_to_save=save))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter))
    ids = random_tokens(40)
    wrapped = perplexity(model, ids, 16)
    with model.disable_adapter():
        base = perplexity(model, ids, 16)
    merged = perplexity(model.merge_and_unload(), ids, 16)
    assert wrapped.loss == pytest.approx(merged.loss, abs=1e-4)
    assert abs(wrapped.loss - base.loss) > 1e-2


def test_modes_are_restored_and_training_goes_on_afterwards():
    model = get_peft_model(build(CONFIGS["llama"]), LoraConfig(target_modules=["q_proj"], lora_dropout=0.5))
    model.train()
    model.base_model.model.lm_head.eval()
    modes = [module.training for module in model.modules()]
    ids = random_tokens(40)
    assert perplexity(model, ids, 16).loss == perplexity(model, ids, 16).loss, "no dropout while measuring"
    assert [module.training for module in model.modules()] == modes
    x = torch.from_numpy(ids.astype(np.int64))[None]
    model(input_ids=x, labels=x).loss.backward()
    with pytest.raises(DataError):
        perplexity(model, ids, 64, protocol="longlora")
    assert [module.training for module in model.modules()] == modes


def test_bfloat16_is_measured_in_float32_after_the_head():
    for name in ("llama", "gemma2", "cohere", "granite"):
        model, ids = build(CONFIGS[name]), random_tokens(40)
        exact = perplexity(model, ids, 16).loss
        assert perplexity(model.to(torch.bfloat16), ids, 16).loss == pytest.approx(exact, rel=0.05)


def test_a_context_beyond_the_model_s_own_is_measured(llama):
    assert perplexity(llama, random_tokens(200), 128).tokens == 199


@prefix_tuning_warns
def test_a_head_that_is_not_known_is_refused():
    # HyperCLOVA X multiplies by the number that Granite divides by.
    strange = build(HyperCLOVAXConfig(**COMMON, num_key_value_heads=2, logits_scaling=3.0))
    prompted = get_peft_model(build(CONFIGS["llama"]), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    for model in (strange, prompted):
        with pytest.raises(ModelError, match="output head"):
            perplexity(model, random_tokens(40), 16)
    with pytest.raises(ModelError, match="causal language model"):
        perplexity(build(CONFIGS["llama"]).model, random_tokens(40), 16)


def test_losses_that_are_not_finite_are_refused():
    model = build(CONFIGS["llama"])
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    with pytest.raises(ModelError, match="not finite"):
        perplexity(model, random_tokens(40), 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"context": 1}, "at least 2"),
        ({"context": 8, "stride": 0}, "from 1 to 8"),
        ({"context": 8, "stride": 9}, "from 1 to 8"),
        ({"context": 8, "protocol": "sliding"}, "strided, longlora, longqlora"),
        ({"context": 8, "protocol": "longlora", "stride": 128}, "fixes its windows"),
        ({"context": 8, "protocol": "longqlora", "score_from": 4}, "fixes its windows"),
        ({"context": 8, "score_from": -1}, "score_from"),
        ({"context": 8, "batch_size": 0}, "batch size"),
        ({"context": 8, "bucket": 0}, "bucket"),
        ({"context": 8, "chunk": 0}, "chunk"),
        ({"context": 8, "short_context": 1}, "short context is 1 "),
        ({"context": 8, "short_context": 8}, "below the context, 8"),
        ({"context": 8, "short_context": 4, "protocol": "longlora"}, "strided only"),
    ],
)
def test_settings_out_of_range_are_refused(llama, arguments, message):
    with pytest.raises(LengthenError, match=message):
        perplexity(llama, random_tokens(40), **arguments)


@pytest.mark.parametrize(
    ("tokens", "arguments", "message"),
    [
        (random_tokens(1), {}, "longest of 1 tokens"),
        ([], {}, "0 documents"),
        (random_tokens(30), {"score_from": 30}, "position 30"),
        (random_tokens(272), {"protocol": "longlora"}, "needs 273"),
        (random_tokens(32), {"protocol": "longqlora"}, "needs 33"),
        (np.array([3, VOCABULARY]), {}, "0 to 63"),
        (np.array([3, -1]), {}, "0 to 63"),
        (np.array([0.5, 1.0]), {}, "tokenize"),
    ],
)
def test_documents_that_can_not_be_used_are_refused(llama, tokens, arguments, message):
    with pytest.raises(DataError, match=message):
        perplexity(llama, tokens, 16, **arguments)


@pytest.mark.parametrize(("protocol", "length"), [("longlora", 273), ("longqlora", 33)])
def test_the_length_that_the_error_names_is_enough(llama, protocol, length):
    assert perplexity(llama, random_tokens(length), 16, protocol=protocol).windows == 1


def test_the_package_keeps_the_function_under_its_name_and_stays_lazy():
    assert callable(lengthen.evaluation.perplexity)
    assert lengthen.evaluation.perplexity is MODULE.perplexity
    assert set(dir(lengthen.evaluation)) == set(lengthen.evaluation.__all__)
    with pytest.raises(AttributeError):
        _ = lengthen.evaluation.perplexty
    code = "import sys, lengthen.evaluation, lengthen.cli.eval; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
