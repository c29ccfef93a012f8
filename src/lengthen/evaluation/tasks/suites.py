"""How each data set of LongBench and L-Eval asks, how long its answers are, and by what metric they are scored.

The prompts say what the published ones say, in our own words; the published ones are in lm-eval's ``longbench`` tasks.
Metrics and lengths are the published ones.

Source: arXiv 2308.14508 (LongBench), eval.py and config/ of its repository; arXiv 2307.11088 (L-Eval), Baselines/ and
    Evaluation/ of its repository.
"""

from dataclasses import dataclass

__all__ = [
    "LEVAL",
    "LEVAL_EXAM",
    "LEVAL_GENERATION",
    "LEVAL_JUDGED",
    "LONGBENCH",
    "QMSUM",
    "SCI_FI_FACT",
    "SQUALITY",
    "PromptLayout",
]


@dataclass(frozen=True)
class PromptLayout:
    """How a data set asks and is scored.

    Attributes:
        before: the prompt before the document.
        after: the prompt after it, with {question} where there is one, and perhaps {words}: how many the right answer
            has.
        metric: one of `lengthen.evaluation.tasks.metrics.METRICS`.
        max_new_tokens: the longest answer, in tokens.
        bare: a text to be continued, not a request: no chat template is put around it, as in LongBench.
        first_line: only the answer's first line counts.
    """

    before: str
    after: str
    metric: str
    max_new_tokens: int
    bare: bool = False
    first_line: bool = False


def _questions(kind: str, how: str, metric: str, max_new_tokens: int) -> PromptLayout:
    return PromptLayout(
        f"Read the {kind} and answer the question about it. {how}\n\n{kind.capitalize()}:\n",
        f"\n\nAnswer the question about the {kind} above. {how}\n\nQuestion: {{question}}\nAnswer:",
        metric,
        max_new_tokens,
    )


def _summary(kind: str, how: str, metric: str, max_new_tokens: int) -> PromptLayout:
    return PromptLayout(
        f"Read the {kind} and write {how}.\n\n{kind.capitalize()}:\n",
        f"\n\nNow write {how} of the {kind} above.\n\nSummary:",
        metric,
        max_new_tokens,
    )


_BRIEFLY = "Give only the answer and no other words."
_QASPER = (
    'Answer with a phrase or a sentence and no explanation; a yes/no question with "yes", "no" or "unanswerable"; '
    'write "unanswerable" if the article does not say.'
)
_QMSUM_PROMPT = (
    "Read the meeting transcript and answer the query in one or more sentences.\n\nTranscript:\n",
    "\n\nNow answer the query about the meeting above in one or more sentences.\n\nQuery: {question}\nAnswer:",
)
_PASSAGES = _questions("passages", _BRIEFLY, "f1", 32)

LONGBENCH: dict[str, PromptLayout] = {
    "narrativeqa": _questions(
        "story", "Be as brief as you can, a single phrase if possible, and explain nothing.", "f1", 128
    ),
    "qasper": _questions("article", _QASPER, "f1", 128),
    "multifieldqa_en": _questions("text", _BRIEFLY, "f1", 64),
    "multifieldqa_zh": PromptLayout(
        "请阅读下面的文字，并用中文简短回答问题。\n\n",
        "\n\n请根据上面的文字回答问题，只写答案。\n\n问题：{question}\n回答：",
        "f1-zh",
        64,
    ),
    "hotpotqa": _PASSAGES,
    "2wikimqa": _PASSAGES,
    "musique": _PASSAGES,
    "dureader": PromptLayout(
        "请根据下面的文章回答问题。\n\n文章：",
        "\n\n请根据上面的文章回答问题。\n\n问题：{question}\n回答：",
        "rouge-l-longbench-zh",
        128,
    ),
    "gov_report": _summary("government report", "a one-page summary", "rouge-l-longbench", 512),
    "qmsum": PromptLayout(*_QMSUM_PROMPT, "rouge-l-longbench", 512),
    "multi_news": _summary("news articles", "a one-page summary", "rouge-l-longbench", 512),
    "vcsum": PromptLayout(
        "请阅读下面的会议记录，并写一段总结。\n会议记录：\n", "\n\n会议总结：", "rouge-l-longbench-zh", 512
    ),
    "trec": PromptLayout(
        "Name the type of the last question, as in these examples.\n\n",
        "\n{question}",
        "classification",
        64,
        bare=True,
        first_line=True,
    ),
    "triviaqa": PromptLayout(
        f"Answer the question about the passage, as in these examples. {_BRIEFLY}\n\n",
        "\n\n{question}",
        "f1",
        32,
        bare=True,
        first_line=True,
    ),
    "samsum": PromptLayout(
        "Sum up the last dialogue in a few short sentences, as in these examples.\n\n",
        "\n\n{question}",
        "rouge-l-longbench",
        128,
        bare=True,
        first_line=True,
    ),
    "lsht": PromptLayout(
        "请仿照下面的例子，判断最后一条新闻的类别。\n\n",
        "\n{question}",
        "classification",
        64,
        bare=True,
        first_line=True,
    ),
    "passage_count": PromptLayout(
        "Some of the paragraphs below are repeated. Count the different ones.\n\n",
        "\n\nHow many different paragraphs are there, repetitions aside? Write only the number, such as 1, 2 or 3.\n\n"
        "The final answer is: ",
        "count",
        32,
    ),
    "passage_retrieval_en": PromptLayout(
        "Find out which of the numbered paragraphs below the abstract is from.\n\n",
        "\n\nThis is the abstract.\n\n{question}\n\nWhich paragraph is it from? Answer in the form "
        '"Paragraph 1", "Paragraph 2".\n\nThe answer is: ',
        "retrieval",
        32,
    ),
    "passage_retrieval_zh": PromptLayout(
        "请判断给出的摘要出自下面哪一个段落。\n\n",
        "\n\n摘要：\n\n{question}\n\n摘要出自哪一个段落？请用“段落1”、“段落2”的格式回答。\n\n答案是：",
        "retrieval",
        32,
    ),
    "lcc": PromptLayout("Continue this code.\n", "Next line of code:\n", "code-similarity", 64, bare=True),
    "repobench-p": PromptLayout(
        "Continue this code.\n", "{question}Next line of code:\n", "code-similarity", 64, bare=True
    ),
}

_LEVAL_NEW_TOKENS = 512


def _leval(how: str, metric: str) -> PromptLayout:
    return PromptLayout(
        "Read the long document below and do what is asked after it.\n\nDocument:\n",
        f"\n\nQuestion: {{question}}\n{how}\nAnswer:",
        metric,
        _LEVAL_NEW_TOKENS,
    )


_LEVAL_BRIEF = "Write only the answer, without any explanation."
_LEVAL_CHOICE = _leval("Write only the letter of the right answer, such as A or B.", "choice")

# Layouts of the tasks that L-Eval scores by "exam", by the names of its files; LEVAL_EXAM for any other.
LEVAL: dict[str, PromptLayout] = {
    "coursera": _leval("There can be several right answers. Write only their letters, such as A or AB.", "choices"),
    "quality": _LEVAL_CHOICE,
    "tpo": _LEVAL_CHOICE,
    "gsm100": PromptLayout(
        "Answer the last question as in these examples, and end with: The answer is _.\n\n",
        "\n\n{question}",
        "number",
        _LEVAL_NEW_TOKENS,
    ),
    "codeU": PromptLayout(
        "Read this code base and answer the question about it.\n\n", "\n\n{question}", "code-output", _LEVAL_NEW_TOKENS
    ),
    "sci_fi": _leval("Answer True or False.", "truth"),
    "topic_retrieval_longchat": PromptLayout(
        "Below is our earlier conversation about many topics, each opened by the USER. Remember the topics.\n\n",
        "\n\n{question}",
        "contains",
        _LEVAL_NEW_TOKENS,
    ),
}
# Questions of sci_fi are asked twice: of the story, and, without it, of the real world.
SCI_FI_FACT = PromptLayout("", "{question}\nAnswer True or False.\nAnswer:", "truth", _LEVAL_NEW_TOKENS)
LEVAL_EXAM = _leval(_LEVAL_BRIEF, "contains")
# L-Eval asks for as many words as the reference has; {words} is their number.
LEVAL_GENERATION = {name: _leval("Answer in about {words} words.", name) for name in ("f1", "rouge-l")}
# Has no metric: what L-Eval lets people or another model judge.
LEVAL_JUDGED = _leval("Answer in about {words} words.", "auto")

QMSUM = PromptLayout(*_QMSUM_PROMPT, "rouge-l", 512)
SQUALITY = PromptLayout(
    "Read the story and answer the question about it in a paragraph or several.\n\nStory:\n",
    "\n\nQuestion: {question}\nAnswer in a paragraph or several:",
    "rouge-l",
    512,
)
