"""What several processes read together, and how they go on, is what one process computes."""

import copy
from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    FalconH1Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    Llama4TextConfig,
    LlamaConfig,
    MistralConfig,
)

from lengthen.attention.peers import Peers
from lengthen.decoding.prefill import new_cache
from lengthen.decoding.shards import check_shards, continue_shards, read_shard
from lengthen.errors import ContextError, LengthenError, ModelError
from lengthen.evaluation import perplexity
from lengthen.evaluation.answers import ask
from lengthen.evaluation.losses import token_losses
from lengthen.evaluation.prompts import Prompt, Question
from lengthen.head import hidden_states
from shard_threads import in_threads

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "pad_token_id": 2,
         "bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.2, "max_position_embeddings": 256}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**SIZES, num_attention_heads=4, num_key_value_heads=2),
    "one key/value head": LlamaConfig(**SIZES, num_attention_heads=2, num_key_value_heads=1, head_dim=8),
    "windows": MistralConfig(**SIZES, num_attention_heads=4, num_key_value_heads=2, sliding_window=7),
    "some windows": Gemma3TextConfig(**SIZES, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
                                     sliding_window=7, layer_types=["sliding_attention", "full_attention"]),
    "chunks": Llama4TextConfig(**(SIZES | {"num_hidden_layers": 4}), num_attention_heads=4, num_key_value_heads=2,
                               head_dim=8, attention_chunk_size=8, num_local_experts=2, intermediate_size_mlp=48),
    "gpt-neox": GPTNeoXConfig(**SIZES, num_attention_heads=4),
}  # fmt: skip


def model_of(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


@pytest.fixture(scope="module")
def models():
    return {name: model_of(config) for name, config in CONFIGS.items()}


def ids_of(rows, length, seed=0):
    return torch.randint(3, 64, (rows, length), generator=torch.Generator().manual_seed(seed))


def with_peers(model, count, work):
    """What `work(model, peers)` returns in each process, which have a copy of the model each."""
    copies = [copy.deepcopy(model) for _ in range(count)]
    found, _ = in_threads(
        range(count + 1), lambda shard: work(copies[shard.rank], Peers(shard.rank, count, shard.transport))
    )
    return found


@settings(max_examples=40)
@given(st.sampled_from(list(CONFIGS)), st.integers(2, 4), st.integers(4, 60), st.integers(1, 2))
def test_hidden_states(models, name, count, length, rows):
    model, ids = models[name], ids_of(rows, length)
    found = with_peers(model, count, lambda own, peers: read_shard(own, ids, peers.shard(length)))
    torch.testing.assert_close(torch.cat(found, dim=1), hidden_states(model, ids), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 5])
def test_queries_in_parts(models, monkeypatch, rows):
    monkeypatch.setattr("lengthen.decoding.shards._ROWS", rows)
    for name, model in models.items():
        ids = ids_of(2, 40)
        found = with_peers(model, 2, lambda own, peers, ids=ids: read_shard(own, ids, peers.shard(40)))
        torch.testing.assert_close(
            torch.cat(found, dim=1), hidden_states(model, ids), atol=2e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize(("length", "score_from"), [(41, 1), (41, 30), (3, 1), (4, 2)])
def test_losses(models, length, score_from):
    ids = ids_of(2, length)
    whole = token_losses(models["llama"], ids, score_from)
    for losses in with_peers(models["llama"], 3, lambda own, peers: token_losses(own, ids, score_from, peers=peers)):
        torch.testing.assert_close(losses, whole, atol=1e-5, rtol=0)


def test_perplexity(models):
    documents = [ids_of(1, length, seed=length)[0] for length in (90, 2, 33)]
    settings = {"context": 40, "stride": 16, "short_context": 8, "batch_size": 2}
    one = perplexity(models["llama"], documents, **settings)
    for result in with_peers(
        models["llama"], 4, lambda own, peers: perplexity(own, documents, **settings, peers=peers)
    ):
        assert result.loss == pytest.approx(one.loss, rel=1e-6)
        assert result.gain["gain"] == pytest.approx(one.gain["gain"], abs=1e-6)
        assert (result.tokens, result.windows, result.chunk) == (one.tokens, one.windows, 10)


@settings(max_examples=20)
@given(
    st.sampled_from(["llama", "one key/value head", "gpt-neox"]), st.integers(2, 4), st.integers(4, 40),
    st.lists(st.integers(1, 7), min_size=1, max_size=3),
)  # fmt: skip
def test_what_follows(models, name, count, length, lengths):
    model, ids = models[name], ids_of(2, length)
    after = [ids_of(2, size, seed=size) for size in lengths]

    def work(own, peers):
        shard, cache = peers.shard(length), new_cache(own)
        read_shard(own, ids, shard, cache)
        return torch.cat([continue_shards(own, each, shard, cache) for each in after], dim=1)

    found = with_peers(model, count, work)
    with torch.inference_mode():
        whole = model(input_ids=torch.cat([ids, *after], dim=1)).logits[:, length:]
    for logits in found:
        torch.testing.assert_close(logits, whole, atol=5e-5, rtol=1e-5)
        assert torch.equal(logits, found[0]), "all take the same token"


def test_answers(models, tokenizer):
    def question(seed):
        ids, answer = ids_of(1, 6, seed)[0].tolist(), ids_of(1, 3, seed + 1)[0].tolist()
        return Question(ids, answer, "1", [[0, 1, 2]], [[token] for token in answer])

    prompts = [Prompt(ids_of(1, 30, seed)[0].tolist(), [question(seed), question(seed + 9)]) for seed in (3, 4)]
    one = ask(models["llama"], tokenizer, prompts, 6)
    for answers in with_peers(models["llama"], 3, lambda own, peers: ask(own, tokenizer, prompts, 6, peers)):
        for ours, theirs in zip(chain(*answers), chain(*one), strict=True):
            assert ours.losses == pytest.approx(theirs.losses, abs=1e-4)
            assert (ours.likeliest, ours.text) == (theirs.likeliest, theirs.text)


# -- refused


def test_models_that_compute_something_else_in_shards(models):
    ids = ids_of(1, 60)
    hybrid = FalconH1Config(**SIZES, num_attention_heads=4, num_key_value_heads=2, mamba_d_ssm=32, mamba_n_heads=4,
                            mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1)  # fmt: skip
    with pytest.raises(ModelError, match="something else in shards"):
        with_peers(model_of(hybrid), 2, lambda own, peers: check_shards(own, ids, peers))
    for model in models.values():
        with_peers(model, 2, lambda own, peers: check_shards(own, ids, peers))


def test_what_shards_can_not_do(models):
    ids = ids_of(1, 30)
    longrope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    dynamic = model_of(LlamaConfig(**SIZES, num_attention_heads=4, rope_parameters=longrope))
    peers = Peers(0, 2, None)
    with pytest.raises(ContextError, match="changes with the length"):
        check_shards(dynamic, ids, peers)
    eager = copy.deepcopy(models["llama"])
    eager.set_attn_implementation("eager")
    with pytest.raises(ModelError, match="has attention 'eager'"):
        read_shard(eager, ids, peers.shard(30))
    with pytest.raises(ModelError, match="layers with a window"):
        read_shard(models["windows"], ids, peers.shard(30), new_cache(models["windows"]))
    with pytest.raises(LengthenError, match="`chunk=8` is for one process"):
        perplexity(models["llama"], ids[0], 20, chunk=8, peers=peers)
