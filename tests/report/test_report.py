"""`lengthen report` on a real run: what it says is what the files say, and nothing in them breaks the page."""

import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import report_files as files
from command_line import succeed
from lengthen.errors import DataError, ModelError, OutputError
from lengthen.evaluation.plot import bars_figure, found_figure, heatmap_figure, save_figure
from lengthen.provenance import command_line
from lengthen.recipe import load_recipe
from lengthen.report import write_report
from lengthen.report.figures import inline_svg
from lengthen.report.numbers import as_bytes, as_count, as_duration, as_perplexity, as_share

VOID = {"meta", "br", "img", "input", "hr", "link"}


class Page(HTMLParser):
    """Tags must close in their order; keeps elements' attributes, the text, and the text of each element's kind."""

    def __init__(self, path):
        super().__init__(convert_charrefs=True)
        self.source = path.read_text(encoding="utf-8")
        self.open, self.elements, self.text, self.by_tag = [], [], "", {}
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open:
            self.by_tag.setdefault(self.open[-1], []).append(data)

    def attributes(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def folder(run, tmp_path):
    """A copy of the two-step run, called run."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    return copy


@pytest.fixture
def base_id(folder):
    return json.loads((folder / "adapter" / "base.json").read_text(encoding="utf-8"))["id"]


@pytest.fixture(scope="module")
def full(run, tmp_path_factory):
    """The page of a run with every kind of results."""
    folder = tmp_path_factory.mktemp("full") / "run"
    shutil.copytree(run, folder)
    compare = files.write_all(folder, json.loads((folder / "run.json").read_text())["base"]["id"], folder.parent)
    return Page(write_report(folder, compare=compare))


def test_a_run_without_evaluations_says_which_commands_make_them(folder):
    page = Page(write_report(folder))
    code = " ".join(page.by_tag["code"])
    for kind in ("compare", "perplexity", "passkey", "needle", "ruler", "tasks"):
        assert f"lengthen eval {kind} {folder}" in code
    assert "--lengths 32,64,128" in code, "from the base's context to the target"
    assert "from 32 to 128 tokens (4 times) with YaRN" in page.text


def test_real_evaluations_of_run_and_base_stand_side_by_side(folder, base, documents, tmp_path):
    before = tmp_path / "before.json"
    data = ["--data", documents, "--context", "32,128", "--dtype", "float32", "--quiet"]
    for arguments in ([folder, *data], [base, *data, "--beyond", "--json", before]):
        succeed("eval", "perplexity", *arguments)
    page = Page(write_report(folder, compare=[before]))
    (ours,) = (folder / "evals").glob("perplexity-*.json")
    for path in (ours, before):
        for result in json.loads(path.read_text(encoding="utf-8"))["results"]:
            assert any(cell.startswith(f"{result['perplexity']:.2f}") for cell in page.by_tag["td"])
    assert {"base", "run"} <= set(page.by_tag["td"])
    assert len(page.attributes("svg")) == 3, "loss, perplexity by context and by position"


def test_trainable_parameters_are_those_that_were_saved(folder):
    saved = load_file(folder / "adapter" / "adapter_model.safetensors")
    counts = {"adapter": 0, "embeddings": 0, "norms": 0}
    for name, tensor in saved.items():
        kind = "adapter" if "lora_" in name else "norms" if "norm" in name else "embeddings"
        counts[kind] += tensor.numel()
    about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert {kind: about["trainable"][kind] for kind in counts} == counts
    cells = Page(write_report(folder)).by_tag["td"]
    for kind, count in counts.items():
        assert cells[cells.index(kind) + 1] == f"{count:,}"
    assert cells[cells.index("all that is trained") + 1] == f"{sum(counts.values()):,}"


def test_the_page_is_one_well_formed_file_that_asks_for_nothing(full):
    assert "://" not in re.sub(r'(?<=xmlns=")[^"]*', "", full.source)
    policies = [meta["content"] for meta in full.attributes("meta") if "http-equiv" in meta]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]
    for tag, attributes in full.elements:
        assert tag not in ("script", "link", "img", "iframe", "object", "image")
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#")
    assert "@import" not in full.source
    assert full.attributes("html")[0]["lang"] == "en"
    assert len(full.by_tag["h1"]) == 1


def test_ids_are_unique_and_every_reference_inside_the_page_leads_somewhere(full):
    ids = Counter(attributes["id"] for _, attributes in full.elements if "id" in attributes)
    assert {name for name, count in ids.items() if count > 1} == set()
    wanted = set(re.findall(r'(?:url\(#|href="#)([^")]+)', full.source))
    assert wanted
    assert wanted <= set(ids)


def test_every_picture_says_in_words_what_it_shows(full):
    pictures = full.attributes("svg")
    # found by length; perplexity by position, and by context and position; loss; two passkeys, one needle; RULER
    assert len(pictures) == 9
    assert all(picture["role"] == "img" for picture in pictures)
    labels = [picture["aria-label"] for picture in pictures]
    assert len(set(labels)) == len(labels)
    assert labels[0] == (
        "Needles found by length: base 80% at 128 tokens, 0% at 2,048 tokens; run 90% at 128 tokens, 90% at 2,048 "
        "tokens."
    )
    assert any("run 12.40 at 2,048" in label and "base 45.70 at 2,048" in label for label in labels)
    assert any("Heatmap" in label and "lowest 0% at 2,048 tokens and depth 0%" in label for label in labels)


def test_every_section_and_table_has_a_name(full):
    names = {attributes["id"] for tag, attributes in full.elements if tag == "h2"}
    assert len(full.attributes("section")) == len(names) == len(full.by_tag["h2"])
    assert {section["aria-labelledby"] for section in full.attributes("section")} == names
    regions = [div for div in full.attributes("div") if div.get("role") == "region"]
    assert len(regions) == len(full.attributes("table"))
    assert all(region["aria-label"] and region["tabindex"] == "0" for region in regions)
    assert all(cell["scope"] == "col" for cell in full.attributes("th"))


def test_what_is_usable_comes_first_then_perplexity_then_what_was_run(full):
    text = " ".join(full.text.split())
    in_order = [
        "Usable up to 2,048 tokens (base: 128); short ability kept.",
        "Needles found by length, base and run",
        "This run extends",
        "Perplexity by position",
        "Perplexity, strided",
        "What was run",
        "Training",
        "Passkey",
        "Commands and versions",
    ]
    places = [text.index(part) for part in in_order]
    assert places == sorted(places)
    assert "+0.30" in " ".join(full.by_tag["td"])


def test_perplexity_by_position_is_beside_the_base_with_its_sliding_window(folder, base_id):
    content = files.compare("run", base_id)
    files.write(folder / "evals", "compare-1.json", content)
    page = Page(write_report(folder))
    cells = page.by_tag["td"]
    for row in content["perplexity"]:
        if row["from"]:
            found = cells.index(f"{row['from']:,} to {row['to']:,}")
            assert cells[found + 1 : found + 3] == [f"{row['base']:.2f}", f"{row['run']:.2f}"]
    assert cells.count("0 to 1,024") == 1
    assert "0 to 2,048" not in cells, "the row of all positions is no bucket"
    assert "0 to 32" not in cells, "nor is that of the base's context"
    (label,) = [svg["aria-label"] for svg in page.attributes("svg") if "by position" in svg["aria-label"]]
    assert "from 48.00 to 45.00 for the base with a sliding window of 32 tokens, from 16.00 to 12.00" in label
    assert "the run has 12.40, the base with a sliding window of 32 tokens 45.70" in " ".join(page.text.split())


def test_each_evaluation_says_what_it_found(full):
    text = " ".join(full.text.split())
    assert "Given 2,048 tokens the run's perplexity is 12.40, and the base's 45.70" in text
    assert "The effective context is 512 tokens: up to there the run scores at least 60.0" in text
    cells = files.grid("run", "passkey")["results"]
    assert f"The run answers {sum(cell['correct'] for cell in cells)} of 400 questions right" in text


def test_a_run_whose_retrieval_fell_says_so_in_its_first_line(folder, base_id):
    files.write(folder / "evals", "compare-1.json", files.compare("run", base_id, run=0.1, high=-0.05))
    page = Page(write_report(folder))
    lines = [line for line in page.text.partition("}\n")[2].splitlines() if line.strip()]
    first = lines[lines.index("run") + 1]
    assert first.startswith("Retrieval fell below the base's. No tested length is usable (base: 128)")


def test_without_a_comparison_needles_of_both_say_that_retrieval_fell(folder, base_id, tmp_path):
    def first(run_lost, base_lost):
        sides = {"run": run_lost, base_id: base_lost}
        for model, lost in sides.items():
            content = files.grid(model, "needle", lost)
            content["results"] = [cell | {"tokens": cell["tokens"] // 64} for cell in content["results"]]
            files.write(folder / "evals" if model == "run" else tmp_path, "needle-1.json", content)
        page = Page(write_report(folder, compare=[tmp_path / "needle-1.json"]))
        assert "All scores of base and run" not in page.text
        return next(line for line in page.text.splitlines() if "Within the base's context" in line)

    collapsed = first(run_lost=200, base_lost=0)
    assert collapsed.startswith("Retrieval fell below the base's. Within the base's context the run finds ")
    assert "the base 100%, asked of each alone; what of the longer context is usable is not compared." in collapsed
    assert first(run_lost=20, base_lost=20).startswith("Within the base's context the run finds ")
    # A single question is no collapse.
    for path, exact in ((folder / "evals" / "needle-1.json", 0), (tmp_path / "needle-1.json", 1)):
        content = json.loads(path.read_text(encoding="utf-8"))
        content["results"] = [content["results"][0] | {"trials": 1, "exact": exact, "correct": None}]
        path.write_text(json.dumps(content), encoding="utf-8")
    page = Page(write_report(folder, compare=[tmp_path / "needle-1.json"]))
    assert "Within the base's context the run finds 0% of the needles and the base 100%" in page.text
    assert "Retrieval fell" not in page.text
    (tmp_path / "needle-1.json").unlink()
    assert "What of its context is usable is not measured." in Page(write_report(folder)).text


def test_every_side_that_was_asked_and_longppl_are_shown(folder, base_id):
    files.write(folder / "evals", "compare-1.json", files.compare("run", base_id, scaled=0.37))
    page = Page(write_report(folder))
    assert "base, positions scaled, untrained" in page.by_tag["th"]
    assert page.by_tag["td"].count("0.37") == 2
    assert "LongPPL" in page.by_tag["dt"]
    assert "3.21 \u2192 2.50" in page.by_tag["b"]


def test_a_single_prompt_that_fell_is_undecided_in_the_first_line(folder, base_id):
    files.write(folder / "evals", "compare-1.json", files.compare("run", base_id, run=0.0, low=None, high=None))
    page = Page(write_report(folder))
    first = next(line for line in page.text.splitlines() if line.startswith("No tested length is usable"))
    assert first.endswith("; short ability undecided (needle at 128: too few prompts or documents to tell).")
    assert "undecided" in page.by_tag["b"]


def test_what_a_base_that_finds_too_little_can_not_tell(folder, base_id):
    files.write(folder / "evals", "compare-1.json", files.compare("run", base_id, run=0.3, base=0.0))
    page = Page(write_report(folder))
    assert "not known" in page.by_tag["b"]
    assert "none" not in page.by_tag["b"]


def test_an_adapter_at_a_share_is_not_the_run(folder):
    files.write(folder / "evals", "needle-1.json", files.grid("run", "needle") | {"adapter_scale": 0.5})
    page = Page(write_report(folder))
    assert f"lengthen eval needle {folder}" in " ".join(page.by_tag["code"]), "not measured"


def test_the_commands_and_versions_are_there(full, run):
    code = full.by_tag["code"]
    assert "lengthen eval ruler run" in code
    about = json.loads((run / "run.json").read_text(encoding="utf-8"))
    (command,) = about["commands"]
    assert command["command"] in code
    assert f"torch {command['versions']['torch']}" in full.text
    assert command["command"] == command_line()


def test_writing_twice_gives_the_same_bytes(folder, base_id, tmp_path):
    compare = files.write_all(folder, base_id, tmp_path / "elsewhere")
    first, second = (write_report(folder, tmp_path / name, compare).read_bytes() for name in ("a.html", "b.html"))
    assert first == second


def test_perplexities_on_other_documents_are_not_drawn_together(folder, base_id, tmp_path):
    files.write(folder / "evals", "perplexity-1.json", files.perplexity("run"))
    other = files.write(tmp_path, "other.json", files.perplexity(base_id, last=45.7, documents=["c.txt"]))
    page = Page(write_report(folder, compare=[other]))
    assert "45.7" not in page.text
    assert "base.json" in " ".join(page.by_tag["code"]), "which command measures the base on these documents"
    files.write(folder / "evals", "perplexity-2.json", files.perplexity("run", last=9.5, documents=["c.txt"]))
    page = Page(write_report(folder, compare=[other]))
    assert "45.70" in page.text
    assert len([p for p in page.attributes("svg") if "by context" in p["aria-label"]]) == 2


def test_a_newer_result_of_the_same_measurement_takes_the_older_one_s_place(folder):
    files.write(folder / "evals", "perplexity-strided-20261122-090000.json", files.perplexity("run", last=12.4))
    files.write(folder / "evals", "perplexity-strided-20261123-090000.json", files.perplexity("run", last=11.1))
    page = Page(write_report(folder))
    assert "11.10 (10.60\u201311.60)" in page.by_tag["td"]
    assert "12.40" not in page.text


def test_a_perplexity_too_large_for_a_float_is_said_and_not_drawn(folder):
    content = files.perplexity("run")
    content["results"][-1] |= {"perplexity": None, "interval": {"low": 3.0, "high": None}}
    content["results"][-1]["by_position"][0]["perplexity"] = None
    files.write(folder / "evals", "perplexity.json", content)
    assert "over 1e308" in Page(write_report(folder)).text


def test_the_run_s_own_validation_and_the_base_scaled_are_recognized(folder, base_id, documents, tmp_path):
    content = files.perplexity("run")
    bare = {"data": content["data"], "results": [{**r, "protocol": "strided"} for r in content["results"]]}
    files.write(folder / "evals", "validation.json", bare)
    scaled = files.perplexity(base_id, last=14.2) | {"method": "yarn", "target": 2048, "quantize": "nf4"}
    del scaled["documents"]
    page = Page(write_report(folder, compare=[files.write(tmp_path, "scaled.json", scaled)]))
    assert {"run", "positions scaled (yarn), untrained (4-bit)"} <= set(page.by_tag["td"])


def test_a_run_that_was_renamed_keeps_its_results(folder):
    files.write(folder / "evals", "passkey.json", files.grid("run", "passkey"))
    renamed = folder.rename(folder.with_name("other-name"))
    assert "questions right in texts of up to 2,048 tokens" in Page(write_report(renamed)).text


def test_a_run_that_goes_on(folder):
    shutil.rmtree(folder / "adapter")
    metrics = folder / "metrics.jsonl"
    metrics.write_text(metrics.read_text(encoding="utf-8") + '{"step": 3, "lo', encoding="utf-8")
    page = Page(write_report(folder))
    assert "The run is not finished." in page.text
    assert "of 2 steps" in page.attributes("svg")[0]["aria-label"]
    metrics.unlink()
    assert "No step is logged" in Page(write_report(folder)).text


def test_a_mixture_is_told_with_its_shares(make_run, base):
    beside = [{"kind": "retrieval", "weight": 0.75}]
    context = {"target": 512, "method": "yarn"}
    run = make_run(base, "mixed", attention="full", data={"beside": beside}, context=context, accumulation=2)
    (told,) = [cell for cell in Page(write_report(run)).by_tag["dd"] if "retrieval" in cell]
    assert told == "24% long: 5 documents, 1,755 tokens; 76% retrieval: in 1,755 tokens of documents"


def test_a_run_from_before_run_json(folder):
    (folder / "run.json").unlink()
    page = Page(write_report(folder))
    assert "not recorded" in page.text
    assert "from 32 to 128 tokens" in page.text


def broken(change):
    content = files.grid("run", "passkey")
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("{", DataError, "can't be read as JSON"),
        (b"\xff\xfe", DataError, "can't be read as JSON"),
        ("[1, 2]", DataError, "holds no JSON object"),
        ('{"kind": "unheard-of", "results": []}', DataError, "not a results file"),
        ("{}", DataError, "not a results file"),
        (broken(lambda c: c.update(model="another")), ModelError, "another model, 'another'.*the run.*its base"),
        (broken(lambda c: c.update(adapter="elsewhere")), ModelError, "results of another model"),
        (broken(lambda c: c["results"][3].pop("depth")), DataError, "results.3.depth: Field required"),
        (broken(lambda c: c["results"][0].update(depth=50)), DataError, "results.0.depth"),
        (broken(lambda c: c["results"][0].update(trials=0)), DataError, "results.0.trials"),
        (broken(lambda c: c.update(results=[])), DataError, "results"),
    ],
)
def test_a_broken_file_or_one_of_another_model_is_named_and_nothing_written(folder, text, error, message):
    path = folder / "evals" / "x.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(error, match=message) as raised:
        write_report(folder)
    assert str(path) in str(raised.value)
    assert not (folder / "report.html").exists()


def test_compare_takes_only_the_base_s_results(folder, base_id, tmp_path):
    own = files.write(tmp_path, "own.json", files.grid("run", "passkey"))
    with pytest.raises(ModelError, match=f"give results of the base, {base_id}"):
        write_report(folder, compare=[own])
    with pytest.raises(DataError, match="can't read"):
        write_report(folder, compare=[tmp_path / "missing.json"])


def test_what_is_no_run_folder_and_a_broken_metrics_file(folder, tmp_path):
    with pytest.raises(ModelError, match="is not a run folder"):
        write_report(tmp_path)
    (folder / "metrics.jsonl").write_text('{"step": 1}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 1"):
        write_report(folder)


def test_a_place_that_can_not_be_written(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="can't write"):
        write_report(folder, tmp_path / "file" / "report.html")


def test_the_command(folder, tmp_path, monkeypatch):
    out, record = tmp_path / "deep" / "page.html", tmp_path / "record.json"
    ran = succeed("report", folder, "--out", out, "--json", record)
    assert ran.stdout.strip() == str(out)
    assert json.loads(record.read_text(encoding="utf-8")) == {"run": str(folder), "report": str(out)}
    assert not (folder / "report.html").exists()
    ran = succeed("report", folder, "--quiet")
    assert ran.output == ""
    assert Page(folder / "report.html").source == Page(out).source


HOSTILE = "</title></style><script>alert(1)</script> & \"quoted\" 'too' $x^2$ <b>"


def test_names_are_text_wherever_they_come_from(folder):
    recipe = (folder / "recipe.yaml").read_text(encoding="utf-8")
    train = load_recipe(folder / "recipe.yaml").data.train[0]
    (folder / "recipe.yaml").write_text(recipe.replace(train, json.dumps(HOSTILE)), encoding="utf-8")
    content = files.tasks("run")
    content["results"][0] |= {"task": HOSTILE, "metric": HOSTILE}
    content["command"] = HOSTILE
    files.write(folder / "evals", "tasks.json", content)
    files.write(folder / "evals", "perplexity.json", files.perplexity("run", documents=[HOSTILE], protocol=HOSTILE))
    about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    about["base"]["id"] = about["device"] = HOSTILE
    files.write(folder, "run.json", about)
    page = Page(write_report(folder))
    assert page.attributes("script") == []
    assert page.text.count(HOSTILE) >= 7
    assert HOSTILE in page.by_tag["td"]
    hostile = folder.rename(folder.with_name("a<b>&c"))
    assert Page(write_report(hostile)).by_tag["h1"] == ["a<b>&c"]


class Parsed(HTMLParser):
    def __init__(self, source):
        super().__init__(convert_charrefs=True)
        self.tags, self.text = [], ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, attrs))

    def handle_data(self, data):
        self.text += data


@settings(max_examples=12)
@given(st.text(alphabet=st.characters(codec="ascii", exclude_categories=["C"]), min_size=1, max_size=12))
@example("$\\frac{$")
@example("<&\"'")
def test_a_picture_s_label_is_the_text_it_was_given(text):
    source = inline_svg(bars_figure({text: {8: 50.0}, f"{text}2": {8: 60.0}}), "p", text)
    parsed = Parsed(source)
    assert parsed.text.split("(%)")[0]
    assert text.strip() in parsed.text
    assert dict(parsed.tags[0][1])["aria-label"] == text


def test_a_heatmap_has_a_cell_for_each_result_and_the_first_depth_on_top():
    cells = [{"tokens": t, "depth": d, "correct": c, "trials": 8, "exact": 0, "nats": 2.5}
             for t, d, c in ((64, 0.0, 8), (128, 0.0, 4), (128, 1.0, 0))]  # fmt: skip
    (axes,) = heatmap_figure(cells).axes
    assert {(text.get_position(), text.get_text()) for text in axes.texts} == {
        ((0, 0), "100%"), ((1, 0), "50%"), ((1, 1), "0%"),
    }  # fmt: skip
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0%", "100%"]
    low, high = axes.get_ylim()
    assert low > high, "downwards"


@pytest.mark.parametrize(("suffix", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_pictures_are_saved(tmp_path, suffix, begins):
    cells = files.grid("run", "passkey")["results"]
    save_figure(heatmap_figure(cells, "A title"), tmp_path / f"heatmap.{suffix}")
    save_figure(bars_figure({"all": {64: 0.0}}, "All fail", threshold=50), tmp_path / f"bars.{suffix}")
    save_figure(found_figure({"flat": {64: 0.5, 128: 0.5}}, "Flat", 64), tmp_path / f"found.{suffix}")
    assert all(path.read_bytes().startswith(begins) for path in tmp_path.iterdir())


def test_numbers():
    assert [as_perplexity(value) for value in (12.345, 1234.5, None)] == ["12.35", "1,234", "over 1e308"]
    assert [as_share(*value) for value in ((0, 5), (1, 3), (1, 30), (1, 3000))] == ["0%", "33%", "3.3%", "0.033%"]
    assert [as_count(value, "step") for value in (1, 2000)] == ["1 step", "2,000 steps"]
    assert [as_bytes(value) for value in (2.5e8, 1.78e9)] == ["250 MB", "1.8 GB"]
    assert [as_duration(value) for value in (8.4, 59.9, 125, 7260)] == ["8 s", "1 min 0 s", "2 min 5 s", "2 h 1 min"]
