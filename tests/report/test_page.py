"""The page as text: the answer first and honest, everything escaped, one file, readable by everyone."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from tests.report.examples import EVIL, records, report
from xcls.report import page_style
from xcls.report.page_parts import escape, shown, sheet_table, sort_value, table
from xcls.report.sheet import Sheet


def page_of(make, root, made=None):
    report(make, root, made)
    return (root / "out" / "index.html").read_text(encoding="utf-8")


def words(html):
    """The text of HTML, without tags."""
    return " ".join(re.sub(r"<style>.*?</style>|<script>.*?</script>|<[^>]+>", " ", html, flags=re.DOTALL).split())


def headline(html):
    return words(re.search(r'<p class="headline">(.*?)</p>', html).group(1))


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


def test_the_page_says_the_answer_first_then_tables_plots_failures_settings_environment(make, tmp_path):
    html = page_of(make, tmp_path)
    assert (
        headline(html)
        == "✓ Performer saves 30 % time and 40 % memory at −0.60 pp of macro-F1 against sdpa (n = 3); it passes."
    )
    order = [
        "Demonstration: small",
        "saves 30 % time",
        "it loses 5.10 pp (at most 1); it is 0.50 pp above",
        "<table",
        "<img",
        "<h2>Runs that did not complete</h2>",
        "finetuning.lr",
        "torch 2.13.0",
    ]
    places = [html.find(text) for text in order]
    assert places == sorted(places) and places[0] > 0


def test_the_page_is_one_file_that_asks_for_nothing(make, tmp_path):
    html = page_of(make, tmp_path)
    outside = [
        value
        for _, attrs in read(html)
        for name, value in attrs.items()
        if name in ("src", "href") and not value.startswith(("#", "data:image/png"))
    ]
    assert outside == [] and "url(" not in html and "@import" not in html
    anchors = {attrs["href"][1:] for tag, attrs in read(html) if tag == "a"}
    assert len(anchors) >= 5 and anchors <= {attrs.get("id") for _, attrs in read(html)}
    assert "default-src 'none'" in html and html.count("<script") == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda made: made[:3], "Best so far: sdpa, macro-F1 0.911 (n = 3)"),
        (
            lambda made: [r for r in made if r.seed == 0 or r.mode == "baseline"],
            "No verdict yet: 1 of 3 seeds have completed",
        ),
        (lambda made: made[3:6] + made[-1:], "No verdict yet: no completed sdpa run on these rows"),
        (
            lambda made: [r for r in made if r.choices["attention"] != "performer"],
            "Nothing passes: reformer does not meet every claim against sdpa",
        ),
        (lambda made: made[-1:], "No encoder has finished on these rows yet; only the baseline was fitted."),
        (lambda made: made[:6], "No verdict yet: no baseline was trained on these rows"),
    ],
    ids=["one mechanism", "too few seeds", "no reference", "nothing passes", "baseline alone", "no baseline"],
)
def test_the_answer_is_honest_where_it_is_not_a_yes(make, tmp_path, change, said):
    assert said in words(page_of(make, tmp_path, change(records(make))))


def test_what_is_missing_is_named_with_the_command_that_makes_it(make, tmp_path):
    few = [r for r in records(make) if r.seed == 0 or r.mode == "baseline"]
    assert "Next: Run more seeds: seed=0,1,2" in words(page_of(make, tmp_path / "few", few))
    assert "Next: A verdict needs runs that differ in the mechanism alone" in words(
        page_of(make, tmp_path / "one", records(make)[:3])
    )
    long = [replace(r, seq_len=2048, hash=f"{n:064x}") for n, r in enumerate(records(make)[:9])]
    for record in long:
        record.config["seq_len"] = 2048
    assert "add seq_len=512 to the sweep" in words(page_of(make, tmp_path / "long", long))


def test_a_pass_is_qualified_by_what_speaks_against_it(make, tmp_path):
    made = [*make.seeds("sdpa", (0.91, 0.912, 0.911)), *make.seeds("sdpa_fused", (0.91, 0.912, 0.911), time=5.0, memory=50.0),
            *make.seeds("performer", (0.905, 0.905, 0.906), time=7.0, memory=60.0, test=0.80), make.baseline(0.855)]  # fmt: skip
    text = words(page_of(make, tmp_path, made))
    assert (
        "it passes" in text
        and "Against sdpa_fused, which a practitioner would use instead, it does not pass (its time is 1.40×)." in text
    )
    assert "On the test split it does not pass: FAIL." in text


def test_a_bag_of_words_that_beats_every_encoder_is_said(make, tmp_path):
    text = words(
        page_of(
            make,
            tmp_path,
            [
                *make.seeds("sdpa", (0.80, 0.81, 0.80)),
                *make.seeds("performer", (0.80, 0.80, 0.80)),
                make.baseline(0.85),
            ],
        )
    )
    assert (
        "TF-IDF + LogReg, fitted in 2 s, is better than every encoder here: 0.850 macro-F1 (0.870 tuned) against 0.803 of sdpa."
        in text
    )
    assert "The reference, sdpa, falls short of its own claims (quality)" in text


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
    known = """html head meta title style body header main section nav ul li a h1 h2 h3 p b span div small table caption
               thead tbody tr th td details summary pre figure img figcaption script"""
    assert {tag for tag, _ in read(html)} <= set(known.split())


def test_signs_that_hide_or_turn_text_become_visible():
    assert escape("a\x00b\x1bc\u202ed") == "a\ufffdb\ufffdc\ufffdd" and escape("a\tb\nc") == "a\tb\nc"


def test_headings_tables_and_pictures_are_made_for_those_who_cannot_see_them(make, tmp_path):
    tags = read(page_of(make, tmp_path))
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1 and all(after - before <= 1 for before, after in zip(levels, levels[1:]))
    count = {name: sum(tag == name for tag, _ in tags) for name in ("table", "caption", "main", "nav", "header")}
    assert count["table"] == count["caption"] > 5 and count["main"] == count["nav"] == count["header"] == 1
    assert all(attrs.get("scope") in ("col", "row") for tag, attrs in tags if tag == "th")
    alts = [attrs["alt"] for tag, attrs in tags if tag == "img"]
    assert len(alts) == 4 and all(len(alt) > 60 for alt in alts)
    assert dict(tags)["html"]["lang"] == "en"


def test_the_colours_of_text_have_contrast():
    def light(colour):
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2] + 0.05

    for text in (page_style.INK, page_style.SOFT, page_style.GOOD, page_style.BAD, page_style.OPEN, page_style.LINK):
        for ground in (page_style.PAPER, page_style.BAND):
            assert light(ground) / light(text) >= 4.5, (text, ground)
    used = set(re.findall(r"#[0-9a-f]{3,6}\b", page_style.STYLE))
    assert used == {getattr(page_style, n) for n in ("INK", "SOFT", "PAPER", "BAND", "GOOD", "BAD", "OPEN", "LINK")} | {
        "#d0d5db",
        "#fff4d6",
        "#b37a00",
    }


def test_every_verdict_has_a_sign_and_a_word_beside_its_colour(make, tmp_path):
    html = page_of(make, tmp_path)
    found = set(re.findall(r'<b class="(PASS|FAIL|MISSING)">(.*?)</b>', html))
    assert {("PASS", "✓ PASS"), ("FAIL", "✗ FAIL")} <= found and all(text[0] in "✓✗?" for _, text in found)


def test_what_differs_comes_before_what_is_shared(make, tmp_path):
    made = [*make.seeds("sdpa"), *make.seeds("performer", config={"finetuning.lr": 1e-3})]
    html = page_of(make, tmp_path, made)
    settings = html[html.index('<section id="settings">') :]
    assert settings.index("finetuning.") < settings.index("What all 2 groups share") < settings.index("position.name")
    differing = settings[: settings.index("What all 2 groups share")]
    assert (
        "0.0005" in differing and "0.001" in differing and "position.name" not in words(differing).replace("\u200b", "")
    )


def test_any_table_can_be_shown_and_sorts_by_what_it_holds():
    rows = [
        {"what": "a", "cost": 1234567.891, "ok": True, "state": "cannot tell"},
        {"what": "<b>", "cost": None, "n": 3},
    ]
    html = sheet_table(Sheet("x", "X", "Words <i>", rows))
    assert (
        'data-v="1234567.891"' in html and ">1,234,568<" in html and "&lt;b&gt;" in html and "Words &lt;i&gt;" in html
    )
    assert '<b class="MISSING">? cannot tell</b>' in html and html.count("<tr>") == 3
    assert table(["a"], [], "nothing").count("<tr>") == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.677 ± 0.019", 0.677), ("−3.18", -3.18), ("12.7 (1.10×)", 12.7), ("1,759 (0.92×)", 1759.0),
     ("9.89 in all", 9.89), ("2.13.0", None), ("abc", None), ("1e-05", 1e-05), (float("nan"), None), (float("inf"), None), (10**400, None), (True, 1.0)],
)  # fmt: skip
def test_cells_sort_by_the_number_they_begin_with(text, value):
    assert sort_value(text) == value


def test_values_are_shown_short():
    assert [shown(v) for v in (None, True, 3, 12345, 0.123456, 123456.7, "x")] == [
        "–",
        "yes",
        "3",
        "12,345",
        "0.1235",
        "123,457",
        "x",
    ]
