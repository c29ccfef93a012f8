"""The page of models, made from their published configs by what our code says of each.

python tests/test_models_table.py    # writes docs/models.md
"""

import copy
import re
import warnings
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import transformers
from transformers import CONFIG_MAPPING, AutoConfig

from lengthen.context import (
    attention_layers,
    available_methods,
    base_context,
    extend,
    scaled_layers,
    settle_context,
    stated_context,
)
from lengthen.doctor.model import s2_of
from published_configs import PUBLISHED, SEEN

DOCUMENT = Path(__file__).parent.parent / "docs" / "models.md"
# An older transformers lacks the newest architectures.
KNOWN = [entry for entry in PUBLISHED if entry[1] in CONFIG_MAPPING]
NAMES = [entry[0] for entry in KNOWN]

HEAD = """# Models

What lengthen reads in the configs of published models, and what it does with them. Made by
`python tests/test_models_table.py` with transformers {version} from the configs in `tests/published_configs.py`,
without weights; do not edit. `lengthen doctor MODEL` says the same of any model.

The makers' own files were not at hand. The values were found in copies of them in public code, which the last column
names, with what was not found in brackets; what is in no copy may differ from what the maker publishes.

- *Context*: in tokens; what the maker states is what is read, and where from.
- *Layers*: those that attend, by how far they see and whether they rotate positions (RoPE).
- *Scaling*: the methods that take the base to twice its context, and the layers that they scale. `longrope` needs lists
  of factors from the recipe where the base brings none.
- *S2*: shifted sparse attention in training, found in a small model of the same architecture.
- *Config seen in*: repository and path, on GitHub where nothing else is said.

| model | type | context | layers | scaling | S2 | config seen in |
|---|---|---|---|---|---|---|
"""


def config_of(entry):
    _, kind, fields, _, *_ = entry
    return AutoConfig.for_model(kind, **copy.deepcopy(fields))  # which transformers changes


def statements_of(entry):
    return entry[4] if len(entry) > 4 else []


def seen_of(name):
    """Where a model's values were seen; its text model's where it is all that a row is about."""
    return SEEN[name if name in SEEN else name.removesuffix(" (text)")]


def entry_of(name):
    return KNOWN[NAMES.index(name)]


@cache
def row_of(name):
    entry = entry_of(name)
    config = config_of(entry)
    stated = stated_context(config, statements=statements_of(entry))
    settle_context(config, statements=statements_of(entry))
    kinds = Counter(
        (
            "the whole context" if layer.window is None else f"{layer.window:,} tokens",
            "RoPE" if layer.rope is not None else "no RoPE",
        )
        for layer in attention_layers(config)
    )
    layers = "; ".join(f"{count}: {reach}, {rope}" for (reach, rope), count in kinds.items())
    methods, reason = available_methods(config)
    scaling = ", ".join(methods)
    if methods == ["none"]:
        scaling = f"none only: {reason.partition(';')[0]}"
    else:
        scaled, sharing = scaled_layers(config)
        scaling += f" ({len(scaled)} layers" + (f", and {len(sharing)} windows that share)" if sharing else ")")
    context = f"{stated.tokens:,} ({stated.source})"
    return f"| {name} | `{entry[1]}` | {context} | {layers} | {scaling} | {s2_of(config)} | {seen_of(name)} |"


def page():
    with warnings.catch_warnings(action="ignore"):
        rows = "\n".join(row_of(name) for name in NAMES)
    return HEAD.format(version=transformers.__version__) + rows + "\n"


@pytest.mark.parametrize("name", NAMES)
def test_context_is_what_the_maker_states(name):
    entry = entry_of(name)
    config = settle_context(config_of(entry), statements=statements_of(entry))
    assert base_context(config) == entry[3]


def scaled_rope(config):
    """The RoPE parameters of the layers that see the whole context; none without RoPE there."""
    return next((layer.rope for layer in attention_layers(config) if layer.rope and layer.window is None), {})


WITH_A_FACTOR = [
    entry[0] for entry in KNOWN if scaled_rope(config_of(entry)).get("rope_type") in ("linear", "yarn", "llama3")
]


@pytest.mark.parametrize("name", WITH_A_FACTOR)
@pytest.mark.parametrize("times", [2, 8])
def test_extending_multiplies_the_factor_that_is_there(name, times):
    entry = entry_of(name)
    config = settle_context(config_of(entry), statements=statements_of(entry))
    before = scaled_rope(config)
    with warnings.catch_warnings(action="ignore"):
        extended = extend(config, times * entry[3], before["rope_type"])
    assert scaled_rope(extended)["factor"] == times * before["factor"]


def test_the_page_is_what_is_found():
    written = DOCUMENT.read_text(encoding="utf-8")
    version = re.search(r"transformers ([\d.]+)", written).group(1)
    if version != transformers.__version__:
        pytest.skip(f"the page was made with transformers {version}")
    assert written == page()


if __name__ == "__main__":
    DOCUMENT.write_text(page(), encoding="utf-8")
