"""The report: the three files say the same, the page is self-contained and safe, and broken reports are refused."""

import base64
import copy
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from proxy_jax.metrics import page, report, scores

NASTY = 'a <b>sks</b> & "dog" | in the snow'
PROMPTS = [NASTY, "a red sks dog"]


class Page(HTMLParser):
    """Tables as rows of cell texts, images, links, and where the sections start."""

    VOID = ("meta", "img", "line")
    ASIDE = ("small",)  # in a table: explains, is no value

    def __init__(self, text):
        super().__init__()
        self.tables, self.images, self.sections, self.bold, self.text, self.bars = {}, [], [], [], [], []
        self.open, self.errors, self.addresses, self.anchors = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.addresses += [values[name] for name in ("src", "href") if name in values]
        self.anchors += [values["id"]] if "id" in values else []
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "section":
            self.sections.append(values["id"])
        elif tag == "i":
            self.bars.append((values["style"], "class" in values))
        elif tag == "img":
            self.images.append(values)
        elif tag == "table":
            self.rows = self.tables[values["id"]] = []
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        if tag not in ("line", "polyline"):
            self.errors.append(f"<{tag}/>")

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.errors.append(f"</{tag}>")

    def handle_data(self, data):
        self.text.append(data)
        if {"td", "th"} & set(self.open) and not set(self.ASIDE) & set(self.open):
            self.rows[-1][-1] += data
            if "strong" in self.open:
                self.bold.append(data)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A workdir with pictures: five tiny ones, one larger than a thumbnail."""
    folder = tmp_path_factory.mktemp("workdir")
    rng = np.random.default_rng(0)
    for name, size in (("photo", (400, 300)), ("proxy", (48, 48)), ("a", (16, 16)), ("b", (16, 16)), ("c", (100, 100))):
        Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), np.uint8)).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def content():
    """A report of two arms whose numbers come from real scores."""
    rng = np.random.default_rng(1)
    real = scores.Embeddings(rng.normal(size=(3, 8)) + 1, rng.normal(size=(3, 8)) + 1)
    rows = []
    for arm, label in (("supervisor", "Supervisor"), ("student", "Student <LoRA>")):
        drawn = scores.Embeddings(rng.normal(size=(4, 8)) + 1, rng.normal(size=(4, 8)) + 1)
        result = scores.score(real, drawn, rng.normal(size=(2, 8)) + 1, [NASTY, "a red dog"], [0, 0, 1, 1])
        rows.append({"arm": arm, "label": label, "scores": result.to_dict()})
    return {
        "title": "A <title> & more",
        "subject": {"class_noun": "dog", "token": "sks"},
        "photos": [{"path": "photo.png", "caption": "00.jpg"}],
        "left_out": [],
        "proxies": [{"path": "proxy.png", "caption": "a sks dog"} for _ in range(60)],
        "samples": {arm: [{"path": f"{name}.png", "caption": prompt} for prompt in PROMPTS for name in "ab"] for arm in ("student", "supervisor")},
        "rows": rows,
        "ceiling": scores.ceiling(real).to_dict(),
        "curves": [{"stage": "proxy_tuning", "steps": [1, 2, 3, 4], "losses": [4.0, 3.5, 3.25, 3.0]}],
        "timings": [{"stage": "proxy_tuning", "seconds": 61.2}, {"stage": "evaluation", "seconds": 5.0}],
        "config": {"seed": 0, "lora": {"pattern": "<q|k>"}},
        "versions": {"jax": "0.10.2"},
        "notes": ["One seed only."],
    }


def written(content, root, tmp_path):
    report.write_html(content, root, tmp_path / "report.html")
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def shown(result):
    """A row's cells as every output must print them."""
    return ["–" if result[name] is None else f"{result[name]:.3f}" for name in ("dino", "clip_i", "clip_t")] + [str(result["images"])]


def test_html_numbers_are_the_json_ones(content, root, tmp_path):
    report.write_json(content, tmp_path / "report.json")
    stored = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    tables = Page(written(content, root, tmp_path)).tables
    head, ceiling, *arms = tables["table"]
    assert head[1:] == ["DINO ↑", "CLIP-I ↑", "CLIP-T ↑", "Images"]
    assert ceiling == ["Real photos", *shown(stored["ceiling"])] and ceiling[3] == "–"
    assert arms == [[row["label"], *shown(row["scores"])] for row in stored["rows"]]
    expected = []
    for number, prompt in enumerate((NASTY, "a red dog")):
        expected += [[prompt], *([row["label"], *shown(row["scores"]["per_prompt"][number])] for row in stored["rows"])]
    assert tables["prompt-table"][1:] == expected
    assert tables["time-table"][1:] == [["Proxy tuning", "1 min 01 s"], ["Evaluation", "5.0 s"], ["Total", "1 min 06 s"]]


def test_markdown_numbers_are_the_json_ones(content, tmp_path):
    report.write_markdown(content, tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    cells = [[cell.strip().strip("*") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.splitlines() if line.startswith("|")]
    for row in content["rows"]:
        assert [row["label"], *shown(row["scores"])] in cells
        for result in row["scores"]["per_prompt"]:
            assert [result["prompt"].replace("|", "\\|"), row["label"], *shown(result)] in cells
    for path in ("photo.png", "proxy.png", "a.png", "b.png"):
        assert f"`{path}`" in text
    assert "4 at step 1, 3 at step 4" in text and "- One seed only." in text


def test_best_of_each_column_is_bold(content, root, tmp_path):
    for row, (dino, clip_t) in zip(content["rows"], [(0.71, 0.3), (0.72, 0.3002)], strict=True):
        row["scores"] |= {"dino": dino, "clip_i": None, "clip_t": clip_t, "per_prompt": []}
    content["ceiling"]["dino"] = 0.9  # real photos do not compete
    # CLIP-T is equal as printed: both are bold; an undefined score never is
    assert Page(written(content, root, tmp_path)).bold == ["0.300", "0.720", "0.300"]
    content["rows"], content["samples"] = content["rows"][:1], {}
    assert Page(written(content, root, tmp_path)).bold == []


def test_sections_in_order_with_working_links(content, root, tmp_path):
    parsed = Page(written(content, root, tmp_path))
    assert parsed.sections == ["photos", "supervisor", "proxies", "samples", "scores", "losses", "times", "configuration"]
    links = [address[1:] for address in parsed.addresses if address.startswith("#")]
    assert links == parsed.sections
    assert len(set(parsed.anchors)) == len(parsed.anchors)


PROBED = {"identity": 0.8, "context": 0.9, "identity_context": 0.7, "right_class": 1.0}


def test_probe_scores_have_their_own_columns(content, root, tmp_path):
    for row, less in zip(content["rows"], (0.0, 0.1), strict=True):
        for scores_of in (row["scores"], *row["scores"]["per_prompt"]):
            scores_of |= {name: value - less for name, value in PROBED.items()}
    content["ceiling"] |= {"identity": 0.95, "right_class": 1.0}
    parsed = Page(written(content, root, tmp_path))
    over, head, ceiling, supervisor, student = parsed.tables["table"]
    assert over[1:3] == ["DreamBench's scores", "Read from the pictures by a probe that knows this world"]
    assert head[4:] == ["Identity ↑", "Context ↑", "Identity × context ↑", "Class ↑", "Images"]
    assert ceiling[4:8] == ["0.950", "–", "–", "1.000"]
    assert supervisor[4:8] == ["0.800", "0.900", "0.700", "1.000"] and student[4:8] == ["0.700", "0.800", "0.600", "0.900"]
    assert [row[4:8] for row in parsed.tables["prompt-table"][2:4]] == [supervisor[4:8], student[4:8]]
    assert "show 70% of what makes this dog itself (the supervisor's 80%, real photos 95%) and 80% of what the prompts" in "".join(parsed.text)
    report.write_markdown(content, tmp_path / "report.md")
    assert "| Identity ↑ | Context ↑ | Identity × context ↑ | Class ↑ |" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_scores_of_random_weights_are_no_result(content, root, tmp_path):
    assert "Likeness to the photos, by DINO" in written(content, root, tmp_path)
    content["config"]["random_weights"] = {"supervisor": {}}
    assert "Likeness to the photos, by DINO" not in written(content, root, tmp_path)


def test_every_metric_is_explained_below_its_name(content, root, tmp_path):
    text = written(content, root, tmp_path)
    assert set(report.MEANINGS) == {*scores.METRICS, *scores.PROBED} and all("higher is better" in meaning for meaning in report.MEANINGS.values())
    for name in scores.METRICS:
        assert f"{report.LABELS[name]}<small>{page.escape(report.MEANINGS[name])}</small>" in text
    assert not any(page.escape(report.MEANINGS[name]) in text for name in scores.PROBED)  # this report has none


def test_bars_end_at_the_real_photos_or_at_one(content, root, tmp_path):
    content["ceiling"] |= {"dino": 0.8, "clip_i": None, "clip_t": None}
    content["rows"][0]["scores"] |= {"dino": 0.6, "clip_i": 0.6, "clip_t": -0.25}
    content["rows"][1]["scores"] |= {"dino": 0.9, "clip_i": None, "clip_t": 0.0}
    bars = Page(written(content, root, tmp_path)).bars
    photos, supervisor, student = [("100.0%", False)], [("75.0%", False), ("60.0%", False), ("25.0%", True)], [("100.0%", False), ("0.0%", False)]
    assert bars == [(f"width:{width}", below) for width, below in photos + supervisor + student]


def test_a_row_of_pictures_stays_readable(content, root, tmp_path):
    """Four arms of four pictures a prompt: two each, and the page says so; the table counts all."""
    names = ("supervisor", "student", "untuned_student", "direct_student")
    content["rows"] = [{**copy.deepcopy(content["rows"][0]), "arm": name, "label": name} for name in names]
    content["samples"] = {name: [{"path": "a.png", "caption": prompt} for prompt in PROMPTS for _ in range(4)] for name in names}
    parsed = Page(written(content, root, tmp_path))
    beside = [image["alt"] for image in parsed.images if ", picture " in image["alt"]]
    assert len(beside) == 2 * 4 * 2
    assert beside[:3] == [f"{name}, picture {number}: {NASTY}" for name, number in (("supervisor", 1), ("supervisor", 2), ("student", 1))]
    assert "The first 2 of 4 pictures a prompt are shown" in "".join(parsed.text)


def test_left_out_photos_are_named(content, root, tmp_path):
    content["left_out"] = ["<b>.heic", *(f"{i}.txt" for i in range(10))]
    expected = "Left out, because they are no pictures that can be read: <b>.heic, 0.txt, 1.txt, 2.txt, 3.txt, 4.txt, 5.txt, 6.txt, 7.txt, 8.txt"
    expected += " and 1 more."
    text = written(content, root, tmp_path)
    assert expected in "".join(Page(text).text) and "<b>" not in text
    report.write_markdown(content, tmp_path / "report.md")
    assert expected in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_page_is_self_contained_and_well_formed(content, root, tmp_path):
    text = written(content, root, tmp_path)
    parsed = Page(text)
    assert not parsed.errors and not parsed.open
    assert all(address.startswith(("data:image/", "#")) for address in parsed.addresses)
    assert "<script" not in text and "url(" not in text and "@import" not in text and "http" not in text
    assert "prefers-color-scheme:dark" in text and 'name="viewport"' in text


def test_pictures_are_the_files(content, root, tmp_path):
    images = Page(written(content, root, tmp_path)).images
    # a photo, one supervisor picture a prompt, 24 of 60 proxies, the photo again beside 2 prompts x 2 arms x 2 pictures
    assert len(images) == 1 + 2 + 24 + 1 + 8
    assert all(image["alt"] for image in images) and len({image["alt"] for image in images}) == len(images)

    def decoded(image):
        return Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1])))

    photo, proxy, sample = images[0], images[3], images[-1]
    assert decoded(photo).size == (256, 192) == (int(photo["width"]), int(photo["height"]))
    assert photo["src"].startswith("data:image/jpeg") and proxy["src"].startswith("data:image/png")
    assert proxy["alt"] == "Proxy 1: a sks dog"
    assert sample["alt"] == "Student <LoRA>, picture 2: a red sks dog"
    for image, name in ((proxy, "proxy"), (sample, "b")):
        with Image.open(root / f"{name}.png") as original:
            np.testing.assert_array_equal(np.asarray(decoded(image)), np.asarray(original))


def test_text_is_escaped(content, root, tmp_path):
    text = written(content, root, tmp_path)
    assert "<b>" not in text and "<LoRA>" not in text and "<title> &" not in text and "<q|k>" not in text
    assert "".join(Page(text).text).count(NASTY) >= 3  # supervisor's caption, side by side, by prompt


def test_same_report_same_bytes(content, root, tmp_path):
    first = written(content, root, tmp_path)
    assert written(copy.deepcopy(content), root, tmp_path) == first
    content["rows"][0]["scores"]["dino"] += 0.01
    assert written(content, root, tmp_path) != first


def test_says_what_is_undefined_or_missing(content, root, tmp_path):
    one = np.ones((1, 4))
    content["ceiling"] = scores.ceiling(scores.Embeddings(one, one)).to_dict()
    content |= {"proxies": [], "samples": {}, "curves": []}
    text = "".join(Page(written(content, root, tmp_path)).text)
    for words in ("at least two photos", "learned from the photos directly", "Nothing was trained", "No generator was sampled", "drew no pictures"):
        assert words in text
    assert "never saw the photos" not in text
    report.write_markdown(content, tmp_path / "report.md")
    assert "at least two photos" in (tmp_path / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("notes"), r"lacks \['notes'\]"),
        (lambda c: c.update(extra=1), r"unknown fields \['extra'\]"),
        (lambda c: c["samples"].update(other=[]), "cover the samples"),
        (lambda c: c["rows"].append(c["rows"][0]), "rows differ"),
        (lambda c: c["rows"][0]["scores"].pop("clip_t"), r"'supervisor' lack \['clip_t'\]"),
        (lambda c: c["rows"][1]["scores"].pop("context"), r"'student' lack \['context'\]"),
        (lambda c: c["curves"][0]["steps"].pop(), "3 steps and 4 losses"),
        (lambda c: c["photos"].append({"path": "gone.png", "caption": ""}), "'gone.png', which is not a file"),
    ],
)
def test_broken_reports_are_refused(content, root, tmp_path, change, message):
    change(content)
    with pytest.raises(report.ReportError, match=message):
        report.write_html(content, root, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_absolute_paths_and_nan_are_refused(content, root, tmp_path):
    content["photos"][0]["path"] = str(root / "photo.png")
    with pytest.raises(report.ReportError, match="not a file below"):
        report.write_html(content, root, tmp_path / "report.html")
    content["rows"][0]["scores"]["dino"] = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        report.write_json(content, tmp_path / "report.json")


def test_chart_draws_the_values_to_scale():
    text = page.line_chart([0, 10, 20], [1.0, 3.0, 2.0], "Loss")
    raw = re.search(r'class="raw" points="([^"]+)"', text).group(1)
    (x0, y0), (x1, y1), (x2, y2) = [tuple(map(float, point.split(","))) for point in raw.split()]
    assert x1 - x0 == pytest.approx(x2 - x1) and y1 < y2 < y0  # downwards in SVG is lower
    assert (y0 - y2) == pytest.approx((y0 - y1) / 2, abs=0.2)
    assert 'aria-label="Loss"' in text


def test_chart_of_one_value_and_of_a_constant():
    for steps, values in (([5], [2.0]), ([1, 2], [0.0, 0.0])):
        assert "nan" not in page.line_chart(steps, values, "Loss")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (0.03, 0.28, [0.05, 0.1, 0.15, 0.2, 0.25]), (-1, 1, [-1, -0.5, 0, 0.5, 1]), (3, 3, [3])],
)
def test_ticks_are_round(low, high, expected):
    assert page.ticks(low, high) == pytest.approx(expected)


def test_running_mean_is_of_the_past():
    assert page.running_mean([4.0, 2.0, 6.0], 2) == [4.0, 3.0, 4.0]


def test_durations_and_spread():
    assert [report.duration(s) for s in (0.04, 59.94, 125, 7500)] == ["0.0 s", "59.9 s", "2 min 05 s", "2 h 05 min"]
    assert report.spread(list(range(10)), 4) == [0, 2, 5, 7] and report.spread([1, 2], 4) == [1, 2]


def test_small_pictures_lose_nothing_and_turned_photos_stand_up(tmp_path):
    picture = Image.new("RGB", (20, 10), "red")
    exif = picture.getexif()
    exif[0x0112] = 6  # taken with the camera on its side
    picture.save(tmp_path / "turned.jpg", exif=exif)
    _, width, height = page.thumbnail(Path(tmp_path / "turned.jpg"))
    assert (width, height) == (10, 20)
