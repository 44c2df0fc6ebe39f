"""The page as HTML: the claims first, everything escaped, one file, readable by everyone."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import xcls.report
from tests.report.examples import EVIL, report
from xcls.report.page import shown, sort_value, table_view, view, visible
from xcls.report.tables import Table


def page_of(make, root, made=None):
    report(make, root, made)
    return (root / "out" / "index.html").read_text(encoding="utf-8")


def words(html):
    """The text of HTML, without tags."""
    return " ".join(re.sub(r"<style>.*?</style>|<script>.*?</script>|<[^>]+>", " ", html, flags=re.DOTALL).split())


class Reader(HTMLParser):
    """Collects what a page is made of."""

    def __init__(self):
        super().__init__()
        self.tags, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def read(html):
    reader = Reader()
    reader.feed(html)
    assert reader.open == []
    return reader.tags


def test_the_page_has_headline_matrix_plot_then_groups_failures_settings_environment(make, tmp_path):
    html = page_of(make, tmp_path)
    order = [
        "Demonstration: small",
        '<p class="headline">',
        'class="matrix"',
        "<img",
        '<section id="groups-0">',
        '<section id="failed">',
        '<section id="settings">',
        '<section id="environment">',
    ]
    places = [html.find(text) for text in order]
    assert places == sorted(places) and places[0] > 0
    matrix = words(html[places[2] : html.index("</table>")])
    assert re.search(
        r"performer n = 3 ✓ 0\.70× ≤ 0\.8× ✓ 0\.60× ≤ 0\.7× ✓ 0\.60 ≤ 1 ✓ 5\.00 ≥ 3 ✓ 0\.20 ≤ 1 ✓ PASS test: ✓ PASS",
        matrix,
    )
    failed = words(html[html.index('<section id="failed">') :])
    assert failed.index("NaN in the loss at step 7") < failed.index("SIGTERM")


def test_the_page_is_one_file_that_asks_for_nothing(make, tmp_path):
    html = page_of(make, tmp_path)
    places = [value for _, attrs in read(html) for name, value in attrs.items() if name in ("src", "href")]
    assert (
        [value for value in places if not value.startswith(("#", "data:image/png"))] == []
        and "url(" not in html
        and "@import" not in html
    )
    anchors = {attrs["href"][1:] for tag, attrs in read(html) if tag == "a"}
    assert len(anchors) >= 5 and anchors <= {attrs.get("id") for _, attrs in read(html)}
    assert "default-src 'none'" in html.replace("&#39;", "'") and html.count("<script") == 1


def test_the_limits_are_those_of_the_study(make, tmp_path):
    made = make.seeds(
        "sdpa", config={"claims.seq_len": 1024, "claims.min_seeds": 2, "claims.families.sdpa.min_gain_pp": 7.5}
    )
    text = words(page_of(make, tmp_path, [*made, make.baseline(0.8)]))
    assert "over at least 2 seeds, at 1024 tokens" in text and "≥ 7.5" in text and "over at least 3 seeds" not in text


def test_nothing_from_a_record_reaches_the_page_unescaped(make, tmp_path):
    made = [
        make.finetune(seed=s, study=EVIL, config={EVIL: EVIL}, versions={"torch": EVIL}, commit=EVIL, exp=EVIL)
        for s in range(3)
    ]
    made.append(make.finetune(seed=3, status="failed", cause=EVIL, config={"finetuning.lr": EVIL}))
    for record in made:
        record.choices = {**record.choices, "attention": EVIL, "dataset": EVIL}
        record.device = {**record.device, "name": EVIL}
        record.data = {**record.data, "classes": {EVIL: 1}}
        record.command = [f"study={EVIL}"]
    made[-1].cause = f"{EVIL} AT&T [click](javascript:alert(1)) ![](https://spy.example/x.png)"
    html = page_of(make, tmp_path, made)
    assert html.count("<script") == 1 and html.count("&lt;script&gt;") > 20
    text = next(tmp_path.rglob("report.md")).read_text(encoding="utf-8")
    assert not set("<>") & set(text) and text.count("&lt;script&gt;") > 5 and "AT&amp;T" in text and "](" not in text
    known = """html head meta title style body header main section nav ul ol li a h1 h2 h3 p b span div small sup table caption
               thead tbody tr th td details summary pre figure img figcaption script"""
    assert {tag for tag, _ in read(html)} <= set(known.split())


def test_signs_that_hide_or_turn_text_become_visible(make, tmp_path):
    assert visible("a\x00b\x1bc\u202ed") == "a\ufffdb\ufffdc\ufffdd" and visible("a\tb\nc") == "a\tb\nc"
    assert "SIG\ufffdTERM" in page_of(
        make, tmp_path, [make.finetune(status="failed", cause="SIG\u202eTERM", metrics={})]
    )


def test_headings_tables_and_pictures_are_made_for_those_who_cannot_see_them(make, tmp_path):
    tags = read(page_of(make, tmp_path))
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1 and all(after - before <= 1 for before, after in zip(levels, levels[1:]))
    count = {name: sum(tag == name for tag, _ in tags) for name in ("table", "caption", "main", "nav", "header")}
    assert count["table"] == count["caption"] > 5 and count["main"] == count["nav"] == count["header"] == 1
    assert all(attrs.get("scope") in ("col", "row") for tag, attrs in tags if tag == "th")
    alts = [attrs["alt"] for tag, attrs in tags if tag == "img"]
    assert len(alts) == 4 and all(len(alt) > 60 for alt in alts) and dict(tags)["html"]["lang"] == "en"


def test_the_colours_of_text_have_contrast():
    css = (Path(xcls.report.__file__).parent / "page.css").read_text(encoding="utf-8")
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", css))

    def light(colour):
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2] + 0.05

    for text in ("ink", "soft", "link", "good", "bad", "open"):
        for ground in ("paper", "band"):
            assert light(colours[ground]) / light(colours[text]) >= 4.5, (text, ground)
    assert len(re.findall("#[0-9a-f]{3,6}", css)) == len(colours)  # every colour has a name


def test_every_verdict_has_a_sign_and_a_word_beside_its_colour(make, tmp_path):
    found = set(re.findall(r'<b class="(PASS|FAIL|MISSING)">(.*?)</b>', page_of(make, tmp_path)))
    assert {("PASS", "✓ PASS"), ("FAIL", "✗ FAIL")} <= found and all(text[0] in "✓✗?" for _, text in found)


def test_what_differs_comes_before_what_is_shared(make, tmp_path):
    html = page_of(make, tmp_path, [*make.seeds("sdpa"), *make.seeds("performer", config={"finetuning.lr": 1e-3})])
    settings = html[html.index('<section id="settings">') :]
    differing, shared = settings.split("What all groups share", 1)
    assert "0.0005" in differing and "0.001" in differing and "position.name" in shared
    assert "position.name" not in words(differing).replace("\u200b", "")


def test_a_sheet_becomes_a_table_that_sorts_by_what_it_holds():
    rows = [
        {"what": "a", "cost": 1234567.891, "ok": True, "state": "cannot tell"},
        {"what": "<b>", "cost": None, "n": 3},
    ]
    made = table_view(Table("x", "X", "Words", rows))
    assert made["head"] == [("what", False), ("cost", True), ("ok", True), ("state", False), ("n", True)]
    assert [(cell["text"], cell["sorts"]) for cell in made["rows"][0]][1] == ("1,234,568", 1234567.891)
    assert [cell["text"] for cell in made["rows"][1]] == ["<b>", "–", "–", "–", "3"]
    long = view(["a"], [[number] for number in range(500)], "Rows.", file="x.csv")
    assert len(long["rows"]) == 400 and long["caption"].endswith("500 rows; all are in x.csv.")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.677 ± 0.019", 0.677),
        ("−3.18", -3.18),
        ("12.7 (1.10×)", 12.7),
        ("1,759 (0.92×)", 1759.0),
        ("9.89 in all", 9.89),
        ("2.13.0", None),
        ("abc", None),
        ("1e-05", 1e-05),
        (float("nan"), None),
        (float("inf"), None),
        (10**400, None),
        (True, 1.0),
    ],
)
def test_cells_sort_by_the_number_they_begin_with(text, value):
    assert sort_value(text) == value


def test_values_are_shown_short():
    values = (None, True, 3, 12345, 0.123456, 123456.7, "x")
    assert [shown(value) for value in values] == ["–", "yes", "3", "12,345", "0.1235", "123,457", "x"]
