"""What became of short answers: twenty short prompts to a base and to what was trained over it, side by side.

    python benchmarks/short_chat.py --json docs/results/usable/chat.json

The base keeps its own positions. Answers are greedy, through the tokenizer's chat template. Three minutes for
SmolLM2-135M on one core. To be read: it gives no score.
"""

import argparse
from pathlib import Path

from lengthen.decoding.generate import generate
from lengthen.evaluation.compare import find_pair
from lengthen.files import write_json
from lengthen.upstream import chat_prompt
from record import record

PROMPTS = (
    "What is the capital of France?",
    "Explain in two sentences why the sky is blue.",
    "Write a haiku about autumn.",
    "Give me three tips for sleeping better.",
    "Translate to Spanish: Good morning, my friend.",
    "What is 17 + 25?",
    "Who wrote Romeo and Juliet?",
    "Rewrite politely: Send me the report now.",
    "List the planets of the solar system.",
    "Write a Python function that returns the larger of two numbers.",
    "Summarize: The meeting was moved from Monday to Wednesday because the manager is travelling.",
    "What is photosynthesis?",
    "Name two uses of a brick.",
    "Is a tomato a fruit or a vegetable?",
    "Finish the sentence: The early bird",
    "Write a one-line advertisement for a bicycle shop.",
    "What should I pack for a weekend at the sea?",
    "Repeat this number: 48213.",
    "What is the opposite of generous?",
    "Tell me a short joke.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m-instruct")
    parser.add_argument("--adapter", default="docs/results/usable/adapter")
    parser.add_argument("--max-new-tokens", type=int, default=60)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    pair = find_pair(options.base, options.base, adapter=options.adapter)
    rows: list[dict[str, str]] = [{"prompt": prompt} for prompt in PROMPTS]
    with pair.models() as models:
        for side in ("base", "run"):
            with getattr(models, side)() as model:
                for row in rows:
                    messages = [{"role": "user", "content": row["prompt"]}]
                    text = chat_prompt(pair.tokenizer, messages, tokenize=False, add_generation_prompt=True)
                    row[side] = generate(model, pair.tokenizer, text, options.max_new_tokens).text.strip()
    for row in rows:
        print(*(f"{name}: {text}" for name, text in row.items()), sep="\n", end="\n\n")
    if options.json:
        write_json(options.json, {**record(), "results": rows})


if __name__ == "__main__":
    main()
