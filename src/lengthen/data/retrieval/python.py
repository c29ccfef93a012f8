"""Look-ups in source code: values that are given to names somewhere in it, and asked for later, as Python."""

from lengthen.data.retrieval.episode import Episode, Fact, Passages, question
from lengthen.data.retrieval.vocabulary import Draw

__all__ = ["STYLES", "WORDS", "python"]

STYLES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("{k} = {v}", ("print({k})  # {v}", "assert {k} == {v}", ">>> {k}\n{v}", "# {k} is {v}", "{k}  # now {v}")),
    ("self.{k} = {v}", ("self.{k} == {v}", "print(self.{k})  # {v}", "assert self.{k} == {v}", "self.{k}  # {v}")),
    ("{k}: int = {v}", ("int({k})  # {v}", "{k} == {v}", "if {k} != {v}")),
    ("{o}.setdefault('{k}', {v})", ("{o}.get('{k}') == {v}", "{o}.setdefault('{k}', {v})", "{o}['{k}']  # {v}")),
    ("{o}.set('{k}', {v})", ("{o}.get('{k}')  # {v}", "assert {o}.get('{k}') == {v}", ">>> {o}.get('{k}')\n{v}")),
    ("    '{k}': {v},", ("{o}['{k}']  # {v}", "    '{k}': {v}", "{o}.pop('{k}')  # {v}")),
    ('    "{k}": {v},', ('{o}["{k}"] is {v}', '    "{k}": {v}', 'print({o}.get("{k}"))  # {v}')),
    ("{k} = lambda: {v}", ("{k}()  # {v}", "assert {k}() == {v}", ">>> {k}()\n{v}", "print({k}())  # {v}")),
    ("def get_{o}(*, {k}={v}):", ("get_{o}(*, {k}={v})", "# default of {k}: {v}")),
    ("{o}({k}={v})", ("assert {o}.{k} == {v}", "{o}({k}={v})", "# {k} was {v}")),
    ("# {k}: {v}", ("# {k}: {v}", "# see {k}: {v}", "#: {k} as above, {v}")),
    ("# {k} has number {v}", ("# the number of {k} is {v}", "# which number has {k}? {v}", "# so {k} has {v}")),
    ("{o}.append(('{k}', {v}))", ("dict({o})['{k}']  # {v}", "('{k}', {v}) in {o}", "for {k}: {v}")),
    ("{o} {k} -> {v}", ("{o} {k} -> {v}", "{k} -> {v}", "# {o} maps {k} to {v}")),
    ("parser.add_argument('--{k}', default={v})", ("args.{k}  # {v}", "--{k} {v}", "print(args.{k})  # {v}")),
    ("@{o}({k}, {v})", ("@{o}({k}, {v})", "{o}({k}, {v})", "# {o} of {k}: {v}")),
)  # fmt: skip
"""A statement and questions about it. `{k}` is a name, `{v}` its value, which ends a question, and `{o}` an owner.

None of them is a form in which `lengthen.evaluation` states or asks.
"""

_WORDS = """
active address array before bin block board body bound box buffer build card case chunk clear close code command
comment config content context copy count data date day debug delta display entry error event exit field file final
first flag flow force frame gate group handle hash head hour image input items join key kind label lag last left level
light line link list load local lock loop lower mark mask master match message method mode month move name next node
normal number object old open option order output pack pair parent part patch path place point position post prefix
process proxy range record release right root round row screen search second section select shape short side signal
site size source space stack start state status stop stream string style sum table target task text thread time title
token top total update user value version view wait word zone
"""

WORDS = _WORDS.split()
"""Parts of names, owners and texts. `lengthen.evaluation` has none of them as a name."""


def python(draw: Draw, count: int, _passages: Passages) -> Episode:
    """Names with values, in one or two styles, and questions about most of them."""
    rng = draw.rng
    styles = rng.sample(STYLES, 1 if rng.random() < 0.6 else 2)
    owner = rng.choice(WORDS)
    make = rng.choice((_number, _long_number, _long_number, _string))
    pairs = [(draw.fresh(lambda: _name(draw)), draw.fresh(lambda: make(draw))) for _ in range(count)]
    asked, facts, cues = [], [], []
    for name, value in pairs:
        statement, forms = rng.choice(styles)
        fields = {"k": name, "o": owner}
        facts.append(Fact(statement.format(v=value, **fields)))
        cues.append(statement.partition("{v}")[0].format(**fields))
        asked += [question(form, value, **fields) for form in rng.sample(forms, rng.choice((1, 1, 2)))]
    statement, _ = rng.choice(styles)

    def filler() -> str:
        return statement.format(k=draw.fresh(lambda: _name(draw)), v=draw.fresh(lambda: make(draw)), o=owner)

    rng.shuffle(asked)
    return Episode("python", tuple(facts), tuple(asked[:12]), tuple(cues), filler)


def _name(draw: Draw) -> str:
    first, second = draw.rng.choice(WORDS), draw.rng.choice(WORDS)
    form = draw.rng.random()
    if form < 0.4:
        return first
    if form < 0.5:
        return f"{first}_{second}".upper()
    if form < 0.6:
        return first + second.capitalize()
    return f"{first}_{second}"


def _number(draw: Draw) -> str:
    return str(draw.rng.randrange(100, 1000))


def _long_number(draw: Draw) -> str:
    length = draw.rng.choice((1, 2, 4, 6))  # not the five of the evaluation
    return str(draw.rng.randrange(10 ** (length - 1), 10**length))


def _string(draw: Draw) -> str:
    return repr(" ".join(draw.rng.choices(WORDS, k=draw.rng.choice((1, 1, 2)))))
