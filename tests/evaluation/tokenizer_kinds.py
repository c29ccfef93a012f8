"""Tokenizers that differ in what exact lengths depend on: BOS, end tokens, spaces, digits, characters."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from lengthen.evaluation.haystack import documentation
from lengthen.models.load import load_tokenizer

KINDS = ("tiny", "llama", "bytes")


def make(kind):
    """One of `KINDS`: byte-level BPE with BOS; spaces as a letter, single digits and BOS; slow, with an end token."""
    if kind == "tiny":
        return load_tokenizer("tiny")
    if kind == "bytes":
        return ByT5Tokenizer()
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="first", split=True), pre_tokenizers.Digits(individual_digits=True)]
    )
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    _, prose = documentation()
    trainer = trainers.BpeTrainer(vocab_size=1500, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    backend.train_from_iterator([*prose[:100_000].splitlines(keepends=True), *set(prose), "\u00e9", "\u00ef"], trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
