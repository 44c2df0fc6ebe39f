"""The page as HTML: the claims first, everything escaped, one file, readable by everyone."""

from __future__ import annotations

import html
import re
import shlex
from html.parser import HTMLParser

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from tests.report.examples import EVIL, records, report


def page_of(make, root, made=None, plots=False):
    report(make, root, made, plots)
    return (root / "out" / "index.html").read_text(encoding="utf-8")


def words(text):
    """The text of HTML, without tags."""
    return " ".join(re.sub(r"<style>.*?</style>|<script>.*?</script>|<[^>]+>", " ", text, flags=re.DOTALL).split())


class Reader(HTMLParser):
    """Collects what a page is made of."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_headline_matrix_and_plot_come_first_then_groups_failures_settings_environment(make, tmp_path):
    text = page_of(make, tmp_path, plots=True)
    order = ["Demonstration: small", 'class="headline"', 'class="matrix"', "<img"]
    order += [f'<section id="{name}">' for name in ("groups-0", "failed", "settings", "environment")]
    places = [text.find(part) for part in order]
    assert places == sorted(places) and places[0] > 0
    cells = r"✓ 0\.70× ≤ 0\.8× ✓ 0\.60× ≤ 0\.7× ✓ 0\.60 ≤ 1 ✓ 5\.00 ≥ 3 ✓ 0\.20 ≤ 1 ✓ PASS test: ✓ PASS"
    assert re.search(rf"performer n = 3 {cells}", words(text[places[2] : text.index("</table>")]))
    failed = words(text[places[5] :])
    assert failed.index("NaN in the loss at step 7") < failed.index("SIGTERM")
    assert set(re.findall(r'<b class="\w+">(.*?)</b>', text)) >= {"✓ PASS", "✗ FAIL"}


def test_the_page_is_one_file_that_asks_for_nothing_and_is_made_for_everyone(make, tmp_path):
    text = page_of(make, tmp_path, plots=True)
    tags = Reader(text).tags
    places = [value for _, attrs in tags for name, value in attrs.items() if name in ("src", "href")]
    assert [value for value in places if not value.startswith(("#", "data:image/png"))] == []
    assert "<button" not in text  # those that sort are made by the script: all is there without it
    assert "url(" not in text and "@import" not in text and "default-src 'none'" in html.unescape(text)
    ids = {attrs.get("id") for _, attrs in tags}
    assert {attrs["href"][1:] for tag, attrs in tags if tag == "a"} <= ids
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1 and all(after - before <= 1 for before, after in zip(levels, levels[1:]))
    count = {name: sum(tag == name for tag, _ in tags) for name in ("table", "caption", "main", "nav", "script")}
    assert count["table"] == count["caption"] > 5 and count["main"] == count["nav"] == count["script"] == 1
    assert all(attrs.get("scope") in ("col", "row") for tag, attrs in tags if tag == "th")
    assert all(len(attrs["alt"]) > 60 for tag, attrs in tags if tag == "img") and dict(tags)["html"]["lang"] == "en"


def test_nothing_from_a_record_reaches_the_page_unescaped(make, tmp_path):
    fields = {"study": EVIL, "config": {EVIL: EVIL}, "versions": {"torch": EVIL}, "commit": EVIL, "exp": EVIL}
    made = [make.finetune(seed=s, **fields) for s in range(3)]
    made.append(make.finetune(seed=3, status="failed", cause="SIG\u202eTERM" + EVIL, config={"finetuning.lr": EVIL}))
    for record in made:
        record.choices = {**record.choices, "attention": EVIL, "dataset": EVIL}
        record.device = {**record.device, "name": EVIL}
        record.data = {**record.data, "classes": {EVIL: 1}}
    text = page_of(make, tmp_path, made)
    assert text.count("<script") == 1 and text.count("&lt;script&gt;") > 20 and "SIG\ufffdTERM" in text
    Reader(text)


def usable(sweep):
    for record in sweep.rglob("record.json"):
        (record.parent / "ckpt_best.pt").touch()


@pytest.mark.parametrize("name", ["my runs", "Bob's (copy), v2", "a=b{c}&<d>", 'q"x\\'])
def test_page_and_screen_have_the_command_of_the_best_run_ready_for_a_shell(make, tmp_path, name):
    made = [*make.seeds("sdpa", (0.8, 0.95, 0.9)), *make.seeds("performer", (0.7, 0.7, 0.7)), make.baseline(0.99)]
    usable(make.save(made, tmp_path, name))
    best = make.finetune("reformer", macro_f1=0.97, data={**made[0].data, "classes": {"validation": {"only": 3}}})
    usable(make.save([best], tmp_path, "learned-nothing"))
    for text in (report(make, tmp_path, []), html.unescape((tmp_path / "out" / "index.html").read_text())):
        (command,) = re.findall(
            r"^(?: {4}|.*<pre>)(python run\.py mode=predict[^\n]*?)(?:</pre>|$)", text, re.MULTILINE
        )
        exp = OverridesParser.create().parse_override(shlex.split(command.partition("</pre>")[0])[3])
        assert exp.value() == f"multirun/{name}/{made[1].run}"


def test_records_have_a_page_without_any_completed_run(make, tmp_path):
    assert "No encoder has finished" in page_of(
        make, tmp_path, [record for record in records(make) if record.seed == 4]
    )
