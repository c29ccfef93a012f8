"""The fused loss against the plain one, alone and around whole models."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, linear
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GraniteConfig, LlamaConfig

from lengthen.data.blocks import Block
from lengthen.data.collate import collate
from lengthen.head import LogitTransform
from lengthen.models.logits import LOGITS, LOGITS_ON_GPU, tokens_per_chunk
from lengthen.training import loss as loss_module
from lengthen.training.loss import linear_cross_entropy
from lengthen.training.objective import CausalLMObjective

pytestmark = pytest.mark.invariants

SMALL = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("capped", [False, True])
def test_equals_the_plain_loss_forward_and_backward(monkeypatch, bias, capped):
    monkeypatch.setattr(loss_module, "tokens_per_chunk", lambda vocabulary, on_gpu: 7)
    torch.manual_seed(0)
    hidden = torch.randn(23, 16, requires_grad=True)
    weight = torch.randn(40, 16, requires_grad=True)
    offset = torch.randn(40, requires_grad=True) if bias else None
    targets = torch.randint(0, 40, (23,))
    targets[::5] = -100
    transform = LogitTransform(Gemma2Config(final_logit_softcapping=3.0 if capped else None))
    inputs = [x for x in (hidden, weight, offset) if x is not None]
    ours = linear_cross_entropy(hidden, weight, targets, offset, transform) / 3
    plain = cross_entropy(transform(linear(hidden, weight, offset)), targets, reduction="sum") / 3
    torch.testing.assert_close(ours, plain)
    for mine, theirs in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(plain, inputs), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("rows", [7, 1024])
def test_weights_scale_each_tokens_loss_and_gradient(monkeypatch, rows):
    monkeypatch.setattr(loss_module, "tokens_per_chunk", lambda vocabulary, on_gpu: rows)
    torch.manual_seed(0)
    hidden = torch.randn(23, 16, requires_grad=True)
    weight = torch.randn(40, 16, requires_grad=True)
    targets = torch.randint(0, 40, (23,))
    targets[::5] = -100
    weights = torch.rand(23) * 3
    weights[::4] = 0
    ours = linear_cross_entropy(hidden, weight, targets, loss_weights_T=weights)
    plain = (cross_entropy(linear(hidden, weight), targets, reduction="none") * weights).sum()
    torch.testing.assert_close(ours, plain)
    gradients = (torch.autograd.grad(loss, (hidden, weight)) for loss in (ours, plain))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)
    ones = linear_cross_entropy(hidden, weight, targets, loss_weights_T=torch.ones(23))
    torch.testing.assert_close(ones, linear_cross_entropy(hidden, weight, targets))


def test_a_batch_has_the_weight_of_predicting_each_label():
    """As shares of a loss: a sequence whose only weight is at one token has that token's loss."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL)).eval()
    ids = torch.randint(0, 60, (21,)).numpy()
    weights = np.zeros(21, np.float32)
    weights[9] = 2.5
    batch = collate([Block(ids, (21,), loss_weights=weights), Block(ids[:13], (13,))], 0)
    assert batch["loss_weights"][1].eq(1).all()
    with torch.no_grad():
        ours = CausalLMObjective(model)(**{key: rows[:1] for key, rows in batch.items()})
        logits = model(input_ids=batch["input_ids"][:1]).logits[0, 8]
    torch.testing.assert_close(ours, 2.5 * cross_entropy(logits, torch.tensor(ids[9])))
    assert "loss_weights" not in collate([Block(ids, (21,))], 0)


def test_frozen_head_gets_no_gradient_and_float32_head_over_bfloat16_hidden_does():
    hidden = torch.randn(9, 16, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(40, 16)
    targets = torch.randint(0, 40, (9,))
    linear_cross_entropy(hidden, weight, targets).backward()
    assert hidden.grad.dtype == torch.bfloat16
    weight.requires_grad_()
    linear_cross_entropy(hidden, weight, targets).backward()
    assert weight.grad.dtype == torch.float32


def test_no_chunk_has_more_rows_than_it_may(monkeypatch):
    rows = []
    plain = loss_module.cross_entropy
    monkeypatch.setattr(loss_module, "cross_entropy", lambda x, *a, **k: rows.append(len(x)) or plain(x, *a, **k))
    linear_cross_entropy(torch.randn(3000, 4), torch.randn(5, 4), torch.randint(0, 5, (3000,)))
    assert sum(rows) == 3000
    assert max(rows) == 1024
    assert tokens_per_chunk(49_152) * 49_152 <= LOGITS
    for vocabulary in (32_000, 49_152, 128_256, 256_000):
        rows_on_gpu = tokens_per_chunk(vocabulary, on_gpu=True)
        assert rows_on_gpu % 128 == 0
        assert rows_on_gpu * vocabulary <= LOGITS_ON_GPU


CONFIGS = [
    LlamaConfig(**SMALL),
    LlamaConfig(**SMALL, tie_word_embeddings=True),
    Gemma2Config(**SMALL, final_logit_softcapping=2.0, attn_logit_softcapping=None),
    CohereConfig(**SMALL, logit_scale=0.25),
    GraniteConfig(**SMALL, logits_scaling=4.0),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_objective_equals_the_models_own_loss(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").train()
    blocks = [Block(torch.randint(0, 60, (n,)).numpy(), (n,)) for n in (21, 13)]
    batch = collate(blocks, 0)
    mask = torch.arange(21)[None] < torch.tensor([[21], [13]])
    targets = (batch["labels"] != -100).sum()
    ours = CausalLMObjective(model)(**batch) / targets
    ours.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    plain = model(
        input_ids=batch["input_ids"], attention_mask=mask.long(), labels=batch["labels"], use_cache=False
    ).loss
    plain.backward()
    torch.testing.assert_close(ours, plain)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, msg=name)
