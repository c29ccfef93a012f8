"""How facts are stated and asked for: the phrasings of key-value lookups, as data.

In each string `{k}` is the key and `{v}` the value; a question ends in its answer, so that what stands before `{v}` is
the prompt. No phrasing shares five words in a row with a prompt of `lengthen.evaluation`.
"""

from dataclasses import dataclass

__all__ = ["PHRASINGS", "Phrasing"]


@dataclass(frozen=True)
class Phrasing:
    """One relation between keys and values.

    Attributes:
        key: the kind of its keys (see `Draw.keys`).
        values: the kinds of its values (see `VALUES`).
        statement: a fact.
        one: questions for the value of a key.
        every: a question for all values of a key that has several, in the order of the text.
        many: a question for the values of several keys (`{k}` is their list), in the order of the question.
        reverse: a question for the key of the value `{known}`; here the key is `{v}`.
        prose: whether the statement is a sentence that may stand inside a paragraph, else it needs a line of its own.
    """

    key: str
    values: tuple[str, ...]
    statement: str
    one: tuple[str, ...]
    every: str
    many: str
    reverse: str
    prose: bool = True


_CODES = ("digits", "number", "hexadecimal", "grouped", "mixed")
_ANY = (*_CODES, "word", "phrase", "thing", "name", "date", "identifier")

PHRASINGS = (
    Phrasing(
        "thing", _CODES, "The {k} is registered under {v}.",
        ("Under what is the {k} registered? The {k} is registered under {v}.", "Q: Registration of the {k}?\nA: {v}"),
        "List everything that the {k} is registered under: {v}.",
        "Give the registrations of {k}, in this order: {v}.",
        "What is registered under {known}? It is the {v}.",
    ),
    Phrasing(
        "thing", ("phrase", "word", "name", "thing"), "Whoever asks for the {k} must say \"{v}\".",
        ("What must be said to get the {k}? One must say \"{v}\".", "Watchword for the {k}: {v}"),
        "Which words open the way to the {k}? They are: {v}.",
        "The watchwords for {k} are, one after the other: {v}.",
        "\"{known}\" is said to get which thing? The {v}.",
    ),
    Phrasing(
        "person", ("digits", "number", "mixed"), "{k} can be reached at extension {v}.",
        ("Question: At which extension can one reach {k}?\nAnswer: {v}", "hey, what was {k}'s extension again? -> {v}"),
        "Extensions at which {k} can be reached: {v}.",
        "Please dial the extensions of {k}, one by one: {v}.",
        "Who picks up at extension {known}? {v}.",
    ),
    Phrasing(
        "person", ("thing", "phrase"), "When asked for a favorite, {k} always named the {v}.",
        ("What did {k} always name as a favorite? The {v}.", "{k}'s favorite: the {v}"),
        "Everything that {k} ever named as a favorite: {v}.",
        "Favorites of {k}, respectively: {v}.",
        "Whose favorite was the {known}? That of {v}.",
    ),
    Phrasing(
        "person", ("date",), "By the parish book, {k} was christened on {v}.",
        ("When was {k} christened? On {v}.", "Christening of {k}, by the parish book: {v}"),
        "Days on which the parish book has {k} christened: {v}.",
        "Christenings of {k}: {v}.",
        "Who was christened on {known}? {v}.",
    ),
    Phrasing(
        "label", _ANY, "Note to self: {k} stands for {v}.",
        ("What does {k} stand for? {k} stands for {v}.", "So {k} means {v}."),
        "All that {k} stands for, as noted: {v}.",
        "Decode {k}: {v}.",
        "Which label stands for {known}? {v}.",
    ),
    Phrasing(
        "word", _ANY, "In the old dialect, \"{k}\" was the word for {v}.",
        ("What did \"{k}\" mean in the old dialect? It was the word for {v}.", "Glossary: {k} - {v}"),
        "The meanings of \"{k}\" in the dialect, all of them: {v}.",
        "Translate from the old dialect: {k}. In order: {v}.",
        "How did one say {known} in the old dialect? One said \"{v}\".",
    ),
    Phrasing(
        "thing", ("number", "digits"), "Exactly {v} grains of sand were counted in the {k}.",
        ("How many grains were counted in the {k}? Exactly {v}.", "Grains in the {k}: {v}"),
        "The counts of grains in the {k}, one after another: {v}.",
        "Counts of grains for {k}: {v}.",
        "In what were {known} grains counted? In the {v}.",
    ),
    Phrasing(
        "label", ("name", "thing"), "Locker {k} belongs to {v}, as everybody knows.",
        ("To whom or what does locker {k} belong? To {v}.", "Owner of locker {k}: {v}"),
        "Locker {k} has had these owners: {v}.",
        "The owners of lockers {k} are, respectively: {v}.",
        "Which locker belongs to {known}? Locker {v}.",
    ),
    Phrasing(
        "thing", ("date", "time"), "The auctioneer will call up the {k} at {v} sharp.",
        ("When will the {k} be called up? At {v} sharp.", "Auction, {k}: {v}"),
        "The {k} is called up more than once, namely at: {v}.",
        "Write down when {k} will be called up: {v}.",
        "What will be called up at {known}? The {v}.",
    ),
    Phrasing(
        "person", ("word", "thing", "phrase", "number"), "(Memo: {k} owes us {v}.)",
        ("What does {k} owe us? {v}", "Debt of {k}, by the memo: {v}"),
        "All that {k} owes us, memo by memo: {v}",
        "Debts of {k}: {v}",
        "Who owes us {known}? {v}",
    ),
    Phrasing(
        "label", _CODES, "Shipment {k} left with seal {v}.",
        ("With which seal did shipment {k} leave? With seal {v}.", "Seal on {k}: {v}"),
        "Shipment {k} left with several seals: {v}.",
        "Seals of the shipments {k}: {v}.",
        "Which shipment left with seal {known}? Shipment {v}.",
    ),
    Phrasing(
        "thing", ("word", "phrase"), "lol i hid the spare key for the {k} behind the {v}, dont tell anyone",
        ("where's the spare key for the {k}? behind the {v}", "ok so the {k} one is behind the {v}"),
        "where all did you hide spare keys for the {k}? behind: {v}",
        "spare keys for {k}, say where each one is: {v}",
        "which spare key is behind the {known}? the one for the {v}",
        prose=False,
    ),
    Phrasing(
        "identifier", _CODES, "{k} = {v}",
        ("print({k})  # {v}", ">>> {k}\n{v}", "The value that was given to {k} above is {v}."),
        "# every value that {k} was given, from first to last: {v}",
        "print({k})  # {v}",
        "# the one that equals {known}: {v}",
        prose=False,
    ),
    Phrasing(
        "identifier", _ANY, "# TODO({k}): {v}",
        ("# what is to be done for {k}: {v}", "grep TODO({k}) -> {v}"),
        "# everything that is to be done for {k}: {v}",
        "# to be done for {k}: {v}",
        "# the TODO {known} belongs to {v}",
        prose=False,
    ),
    Phrasing(
        "identifier", _ANY, "export {k}=\"{v}\"",
        ("$ echo ${k}\n{v}", "Environment variable {k} is set to \"{v}\"."),
        "$ history | grep {k}  # set to: {v}",
        "Environment variables {k} are set to, in turn: {v}",
        "\"{known}\" is what was exported as {v}",
        prose=False,
    ),
    Phrasing(
        "label", _ANY, "| {k} | {v} |",
        ("Row {k} of the table holds: {v}", "| {k} | {v} |"),
        "Rows labeled {k} hold: {v}",
        "Rows {k} hold, in this order: {v}",
        "The row that holds {known} is labeled {v}",
        prose=False,
    ),
    Phrasing(
        "word", _ANY, "<{k}>{v}</{k}>",
        ("Content of the element {k}: {v}", "xpath //{k}/text() -> {v}"),
        "Contents of all elements named {k}: {v}",
        "Contents of the elements {k}: {v}",
        "The element that contains {known} is named {v}",
        prose=False,
    ),
    Phrasing(
        "word", _ANY, "{k}: {v}",
        ("Look up {k}: {v}", "Entry \"{k}\" reads {v}", "{k} -> {v}"),
        "Entries under \"{k}\", top to bottom: {v}",
        "Entries under {k}: {v}",
        "\"{known}\" is the entry under {v}",
        prose=False,
    ),
    Phrasing(
        "label", _ANY, "[{k}] => {v}",
        ("[{k}] => {v}", "What does [{k}] point to? {v}"),
        "[{k}] points to each of: {v}",
        "{k} point to, in turn: {v}",
        "What points to {known}? [{v}]",
        prose=False,
    ),
    Phrasing(
        "town", ("number", "digits", "mixed"), "Trains to {k} bear the code {v} on their side.",
        ("What code do the trains to {k} bear? They bear {v}.", "Train code, {k}: {v}"),
        "The trains to {k} bear several codes, which are {v}.",
        "Tell the train codes for {k}: {v}.",
        "To which town do trains with the code {known} go? To {v}.",
    ),
    Phrasing(
        "town", _CODES, "{v} is what one has to dial before any number in {k}.",
        ("What has to be dialed before a number in {k}? It is {v}.", "The prefix for {k} is {v}."),
        "Prefixes for {k}, all that were given: {v}.",
        "The prefixes for {k} are {v}, in this order.",
        "In which town does one dial {known} first? In {v}.",
    ),
    Phrasing(
        "town", ("name", "word", "thing", "date"), "In {k}, the festival is in honor of {v}.",
        ("In honor of what is the festival in {k}? In honor of {v}.", "Festival of {k}: {v}"),
        "Everything that {k} has festivals in honor of: {v}.",
        "What do {k} honor with their festivals? Respectively {v}.",
        "Where is there a festival in honor of {known}? In {v}.",
    ),
    Phrasing(
        "noun", ("number", "digits"), "By the scales of the customs office, the {k} came to {v} drams.",
        ("How many drams did the {k} come to? It came to {v} drams.", "Drams, {k}: {v}"),
        "The {k} was weighed more than once; in drams: {v}.",
        "In drams, {k} came to {v}, in this order.",
        "What came to {known} drams on the scales? The {v}.",
    ),
    Phrasing(
        "noun", _CODES, "There was a tag on the {k}, and it said {v}.",
        ("What did the tag on the {k} say? It said {v}.", "tag({k}) = {v}", "The tag on the {k} said {v}."),
        "The {k} had tags that said {v}.",
        "The tags on {k} said, in turn, {v}.",
        "On what was the tag that said {known}? On the {v}.",
    ),
    Phrasing(
        "noun", ("town", "name", "word"), "Nobody would guess it, but the {k} comes from {v}.",
        ("Where or whom does the {k} come from? It comes from {v}.", "Origin of the {k}: {v}"),
        "Different people had the {k} come from {v}.",
        "{k} come from, in this order: {v}.",
        "What comes from {known}? The {v} does.",
    ),
    Phrasing(
        "person", _CODES, "\"{v},\" said {k}, \"that is my number, and don't you forget it.\"",
        ("Which number did {k} say not to forget? It was {v}.", "The number of {k}: {v}"),
        "Numbers that {k} said not to forget: {v}.",
        "Numbers of {k}, one each: {v}.",
        "Who said that {known} was not to be forgotten? {v} did.",
    ),
    Phrasing(
        "person", ("town",), "Last summer {k} moved house and now lives in {v}.",
        ("Where does {k} live now? In {v}.", "Present home of {k}: {v}"),
        "Homes of {k}, from first to last: {v}.",
        "The present homes of {k}: {v}.",
        "Who lives in {known} now? {v}.",
    ),
    Phrasing(
        "label", _CODES, "For case {k}, the clerk entered {v} into the register, as the rules demand.",
        ("What did the clerk enter for case {k}? The clerk entered {v}.", "Register, case {k}: {v}"),
        "All entries of the clerk for case {k}: {v}.",
        "The entries for cases {k}: {v}.",
        "For which case was {known} entered? For case {v}.",
    ),
    Phrasing(
        "word", ("number", "digits", "mixed", "hexadecimal"), "PS: the pin for {k} is {v}, keep it to yourself!",
        ("so what's the pin for {k}? it's {v}", "The pin for {k}: {v}"),
        "all the pins i sent you for {k}: {v}",
        "pins for {k}, please: {v}",
        "what is {known} the pin for? for {v}",
    ),
    Phrasing(
        "identifier", _ANY, "assert config[\"{k}\"] == \"{v}\"",
        ("config[\"{k}\"] is \"{v}\"", ">>> config.get(\"{k}\")\n'{v}'"),
        "# config[\"{k}\"] was asserted to be each of: {v}",
        "# config values of {k}: {v}",
        "# \"{known}\" is the config value of {v}",
        prose=False,
    ),
    Phrasing(
        "label", _ANY, "{k};{v};ok",
        ("Second column of the row {k}: {v}", "{k};{v};ok"),
        "Second column of all rows {k}: {v}",
        "Second columns of the rows {k}: {v}",
        "The row with {known} in its second column: {v}",
        prose=False,
    ),
    # German
    Phrasing(
        "person", _ANY, "Auf dem Zettel von {k} steht {v}.",
        ("Was steht auf dem Zettel von {k}? Dort steht {v}.", "Frage: Zettel von {k}?\nAntwort: {v}"),
        "Alles, was auf den Zetteln von {k} steht: {v}.",
        "Auf den Zetteln von {k} steht der Reihe nach: {v}.",
        "Auf wessen Zettel steht {known}? Auf dem von {v}.",
    ),
    Phrasing(
        "label", _CODES, "Akte {k} liegt in Fach {v}.",
        ("In welchem Fach liegt Akte {k}? In Fach {v}.", "Fach der Akte {k}: {v}"),
        "Teile der Akte {k} liegen in den Fächern {v}.",
        "Die Akten {k} liegen, in dieser Reihenfolge, in den Fächern {v}.",
        "Welche Akte liegt in Fach {known}? Akte {v}.",
    ),
    # French
    Phrasing(
        "person", _ANY, "Le mot de passe choisi par {k} est {v}.",
        ("Quel mot de passe {k} a-t-il choisi ? C'est {v}.", "Mot de passe de {k} : {v}"),
        "Tous les mots de passe choisis par {k} : {v}.",
        "Mots de passe de {k}, dans cet ordre : {v}.",
        "Qui a choisi le mot de passe {known} ? {v}.",
    ),
    Phrasing(
        "label", _CODES, "Le dossier {k} porte le tampon {v}.",
        ("Quel tampon porte le dossier {k} ? Le tampon {v}.", "Dossier {k}, tampon : {v}"),
        "Le dossier {k} porte plusieurs tampons : {v}.",
        "Tampons des dossiers {k} : {v}.",
        "Quel dossier porte le tampon {known} ? Le dossier {v}.",
    ),
    # Spanish
    Phrasing(
        "person", _ANY, "En la lista, {k} figura con la clave {v}.",
        ("¿Con qué clave figura {k} en la lista? Con la clave {v}.", "Clave de {k}: {v}"),
        "Todas las claves con las que figura {k}: {v}.",
        "Claves de {k}, en este orden: {v}.",
        "¿Quién figura con la clave {known}? {v}.",
    ),
    Phrasing(
        "label", _CODES, "La caja {k} se abre con el código {v}.",
        ("¿Con qué código se abre la caja {k}? Con el código {v}.", "Código de la caja {k}: {v}"),
        "La caja {k} se abre con cualquiera de estos códigos: {v}.",
        "Códigos de las cajas {k}: {v}.",
        "¿Qué caja se abre con el código {known}? La caja {v}.",
    ),
)  # fmt: skip
