"""Names, messages and prose are spelled the American way."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
STEMS = (
    "author|categor|character|custom|emphas|final|general|initial|local|material|maxim|memor|minim|normal|optim|organ|"
    "parallel|prior|quant|random|real|recogn|serial|special|standard|summar|synchron|token|util|vector|visual"
)
BRITISH = re.compile(
    rf"(?:{STEMS})is(?:e|ed|er|ers|es|ing|ation|ations)(?![a-z])"
    "|analyse|artefact|behaviour|centre|colour|favour|judgement|(?<!aria-)labelled|labelling|learnt|modelling|neighbour|whilst",
    re.IGNORECASE,
)


def test_spelling_is_american():
    files = [
        path
        for folder in ("benchmarks", "docs", "scripts", "src", "tests")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".css", ".j2", ".md", ".py", ".yaml") and path != Path(__file__)
    ]
    assert len(files) > 300
    texts = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in (*files, ROOT / "README.md")}
    assert {path: words for path, text in texts.items() if (words := BRITISH.findall(text))} == {}
