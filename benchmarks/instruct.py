"""Answers about long stories before and after a short instruction tuning: SmolLM2-135M-Instruct on SQuALITY.

    python benchmarks/instruct.py --train squality_v1-3_train.jsonl --held-out squality_v1-3_dev.jsonl \
        --json docs/results/instruct.json

The files are SQuALITY's as published. Its training questions, one written answer each, become instruction data; a story
longer than 4,096 tokens loses its middle, in training as in measuring. A few dozen steps train LoRA on all linear
layers. Before and after, the model answers two questions on each of the first held-out stories, asked as by
`lengthen eval tasks --chat`; ROUGE-L and F1 are against the best of four written answers. --run keeps the run folder,
and goes on with it where it is there. An hour on two cores.
"""

import argparse
import random
import tempfile
from pathlib import Path
from typing import Any

import lengthen
from lengthen.evaluation.tasks.files import Sample, read_samples
from lengthen.evaluation.tasks.metrics import score
from lengthen.evaluation.tasks.scoring import answer_samples
from lengthen.files import write_json, write_json_lines
from lengthen.recipe import parse_recipe
from lengthen.run_folder import RunFolder
from record import record

MODEL = "smollm2-135m-instruct"
CONTEXT = 4096
METRICS = ("rouge-l", "f1")
QUESTIONS_PER_STORY = 2


def conversation(sample: Sample) -> dict[str, Any]:
    """A question with its first written answer, asked in the words of the evaluation."""
    layout = sample.layout
    question = layout.before + sample.document + layout.after.replace("{question}", sample.question)
    return {
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": sample.answers[0].strip()}]
    }


def train(samples: list[Sample], steps: int, folder: Path) -> Path:
    run = folder / "run"
    chosen = random.Random(0).sample(samples, len(samples))
    data = folder / "train.jsonl"
    write_json_lines(data, map(conversation, chosen))
    recipe = {
        "model": MODEL,
        "out": str(run),
        # The base's own context: nothing is extended, and the sequences are shorter.
        "context": {"target": 8192, "method": "none"},
        "attention": {"kind": "full"},
        "adapter": {"rank": 16, "alpha": 32, "targets": "all", "embeddings": False},
        "data": {"kind": "instruct", "train": [str(data)], "sequence_length": CONTEXT, "packing": "none"},
        "training": {
            "steps": steps,
            "learning_rate": 3e-4,
            "schedule": "linear",
            "warmup_steps": 4,
            "dtype": "bfloat16",
            "save_every": 10,
        },
    }
    return lengthen.train(parse_recipe(recipe, "instruct"), resume=run.exists())


def measure(model: str, samples: list[Sample], max_new_tokens: int) -> dict[str, Any]:
    """Mean scores in percent, and every answer."""
    loaded, tokenizer = lengthen.load(model)
    answers = answer_samples(loaded, tokenizer, samples, CONTEXT, "rouge-l", max_new_tokens, chat=True)
    means = {
        metric: 100 * sum(score(metric, each.prediction, each.answers) for each in answers) / len(answers)
        for metric in METRICS
    }
    words = sum(len(each.prediction.split()) for each in answers) / len(answers)
    return {
        **means,
        "words": words,
        "truncated": sum(each.truncated for each in answers),
        "answers": [{"question": each.question, "answer": each.prediction} for each in answers],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--stories", type=int, default=10, help="held-out ones, two questions each")
    parser.add_argument("--max-new-tokens", type=int, default=200)
    parser.add_argument("--run", type=Path, help="folder for the data and the run; default a temporary one")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    held_out = read_samples([arguments.held_out])
    stories = list(dict.fromkeys(sample.document for sample in held_out))[: arguments.stories]
    asked = [
        sample
        for story in stories
        for sample in [each for each in held_out if each.document == story][:QUESTIONS_PER_STORY]
    ]
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.run or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        results = {"before": measure(MODEL, asked, arguments.max_new_tokens)}
        run = train(read_samples([arguments.train]), arguments.steps, folder)
        results["after"] = measure(str(run), asked, arguments.max_new_tokens)
        metrics = RunFolder(run).read_metrics()
    for when, found in results.items():
        print(
            f"{when:<6}  {len(asked)} questions  ROUGE-L {found['rouge-l']:5.2f}  F1 {found['f1']:5.2f}  "
            f"{found['words']:5.1f} words  {found['truncated']} stories cut"
        )
    if arguments.json:
        write_json(
            arguments.json,
            {
                **record(),
                "context": CONTEXT,
                "losses": [line["loss"] for line in metrics],
                "step_seconds": [line["seconds"] for line in metrics],
                "results": results,
            },
        )


if __name__ == "__main__":
    main()
