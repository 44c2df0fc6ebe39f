"""The page in a real browser: a silent console, nothing from the network, sorting, phone, paper, without script."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.image import imread

from tests.report.browser import Browser, program
from tests.report.examples import EVIL, records, report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(program() is None, reason="no chromium on this machine (Debian: apt-get install chromium)"),
]
COLUMN = "[...document.querySelector('#groups-0 table').tBodies[0].rows].map(row => row.cells[{}].textContent)"
HEAD = "document.querySelector('#groups-0 table').tHead.rows[0].cells[{}]"


@pytest.fixture(scope="module")
def browser():
    with Browser() as started:
        yield started


@pytest.fixture
def page(make, tmp_path):
    def written(made=None):
        report(make, tmp_path, made)
        return tmp_path / "out" / "index.html"

    return written


def test_nothing_on_the_console_and_nothing_from_the_network(browser, page):
    browser.open(page())
    assert browser.run("document.title").startswith("Attention mechanisms for text classification: demo")
    assert browser.said() == [] and browser.requested() == []
    assert browser.run("[...document.images].every(image => image.complete && image.naturalWidth > 300)") is True
    assert browser.run("document.images.length") >= 4


def test_a_click_sorts_numbers_as_numbers_and_gaps_come_last(browser, page):
    browser.open(page())
    heads = "[...document.querySelector('#groups-0 table').tHead.rows[0].cells]"
    column = browser.run(heads + ".findIndex(cell => cell.textContent.startsWith('time/epoch'))")
    browser.run(HEAD.format(column) + ".querySelector('button').click()")
    assert browser.run(HEAD.format(column) + ".getAttribute('aria-sort')") == "ascending"
    cheap = browser.run(COLUMN.format(column))
    browser.run(HEAD.format(column) + ".querySelector('button').click()")
    assert browser.run(HEAD.format(column) + ".getAttribute('aria-sort')") == "descending"
    dear = browser.run(COLUMN.format(column))
    first = [float(text.split()[0]) for text in cheap if text != "–"]
    assert first == sorted(first) and len(first) >= 4 and cheap[-1] == "–"
    assert [float(text.split()[0]) for text in dear if text != "–"] == sorted(first, reverse=True) and dear[-1] == "–"


def test_the_keyboard_sorts_names(browser, page):
    browser.open(page())
    browser.run(HEAD.format(0) + ".querySelector('button').focus()")
    browser.press("Enter", 13, "\r")
    names = browser.run(COLUMN.format(0))
    browser.press(" ", 32, " ")
    assert names == sorted(names, key=str.casefold) and browser.run(COLUMN.format(0)) == names[::-1] and len(names) == 5
    assert browser.run(HEAD.format(0) + ".getAttribute('aria-sort')") == "descending"


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_the_page_never_scrolls_sideways_but_a_wide_table_does(browser, page, width):
    browser.open(page(), width=width)
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert (
        browser.run("[...document.querySelectorAll('.scroll')].some(box => box.scrollWidth > box.clientWidth)") is True
    )
    assert (
        browser.run(
            "[...document.querySelectorAll('.scroll')].every(box => box.tabIndex === 0 && box.getAttribute('aria-label'))"
        )
        is True
    )


def test_the_picture_is_no_blank_sheet_and_shows_the_answer_at_once(browser, page):
    browser.open(page(), width=390, height=844)
    shot = imread(io.BytesIO(browser.picture()), format="png")
    assert (
        shot.shape[:2] == (844, 390)
        and np.std(shot[..., :3]) > 0.05
        and len(np.unique((shot[..., 0] * 255).astype(int))) > 20
    )
    assert 0 < browser.run("document.querySelector('.headline').getBoundingClientRect().top") < 400


def test_it_prints_and_what_is_folded_away_is_folded_again(browser, page):
    browser.open(page())
    folded = browser.run("document.querySelectorAll('details:not([open])').length")
    paper = browser.paper()
    assert paper.startswith(b"%PDF") and len(paper) > 50_000
    assert browser.run("document.querySelectorAll('details:not([open])').length") == folded and browser.said() == []


def test_without_script_everything_is_there(browser, page):
    browser.open(page(), script=False)
    root = browser.call("DOM.getDocument", depth=-1)["root"]["nodeId"]
    html = browser.call("DOM.getOuterHTML", nodeId=root)["outerHTML"]
    assert "performer passes: 30 % less time" in html and "<button" not in html and html.count("<table") >= 6


def test_what_a_run_contains_is_shown_and_not_run(browser, page, make):
    evil = '<img src=x onerror="document.title=1"><svg onload=alert(1)>' + EVIL
    made = [
        make.finetune(seed=s, study=evil, config={evil: evil}, versions={"torch": evil}, commit=evil) for s in range(3)
    ]
    made.append(make.finetune(seed=3, status="failed", cause=evil, config={"finetuning.lr": evil}))
    for record in made:
        record.choices = {**record.choices, "attention": evil, "dataset": evil}
    browser.open(page(made))
    assert browser.said() == [] and browser.requested() == []
    assert browser.run("document.querySelectorAll('script').length") == 1
    assert browser.run("document.querySelectorAll('svg, [onerror], [onload]').length") == 0
    assert evil in browser.run("document.querySelector('.study').textContent")


def test_a_script_that_gets_in_is_refused_by_the_policy(browser, page):
    file = page()
    text = file.read_text(encoding="utf-8").replace("</main>", "<script>document.title = 'taken'</script></main>")
    file.write_text(text, encoding="utf-8")
    browser.open(file)
    assert browser.run("document.title") != "taken" and any(
        "Content Security Policy" in line for line in browser.said()
    )


@pytest.mark.parametrize("boards", [1, 2])
def test_headline_matrix_and_plot_are_the_first_screen_on_a_desk(browser, page, make, boards):
    """All verdicts in sight at 1280 x 900, the matrix not cut and not scrolling, quality against cost beside it."""
    made = records(make)
    if boards == 2:
        for record in [*make.seeds("sdpa"), make.baseline()]:
            record.choices["dataset"], record.run, record.data = (
                "other",
                f"other-{record.run}",
                {**record.data, "fingerprint": "e" * 64},
            )
            made.append(record)
    browser.open(page(made), width=1280)
    box = "(place => { const box = document.querySelector(place).getBoundingClientRect(); return [box.left, box.top, box.right, box.bottom]; })"
    matrix, plot, line = (browser.run(f"{box}('#board-0 {place}')") for place in (".matrix", "figure img", ".headline"))
    assert (
        browser.run("(box => box.scrollWidth <= box.clientWidth)(document.querySelector('#board-0 .scroll'))") is True
    )
    assert line[3] <= matrix[1] and matrix[2] <= plot[0] and plot[2] <= 1280 and max(matrix[3], plot[3]) <= 900
    assert line[3] - line[1] < 40  # one line
    heads = browser.run("[...document.querySelector('.matrix').tHead.rows[0].cells].map(cell => cell.textContent)")
    assert heads[0] == "mechanism" and heads[-1] == "verdict" and len(heads) == 7
    signs = browser.run("[...document.querySelectorAll('#board-0 .matrix td b')].map(cell => cell.textContent[0])")
    assert set(signs) == {"✓", "✗"}


def test_on_a_phone_the_matrix_scrolls_in_its_own_frame(browser, page):
    browser.open(page(), width=390, height=844)
    frame = "(box => [box.scrollWidth, box.clientWidth])(document.querySelector('#board-0 .scroll'))"
    whole, shown = browser.run(frame)
    assert whole > shown and shown <= 390 and browser.run("document.documentElement.scrollWidth") <= 390


def test_on_paper_no_number_is_broken_and_no_table_is_wider_than_the_sheet(browser, page, make):
    costs = {
        "tokens_per_s": 1139208.0,
        "padded_tokens_per_s": 2139208.0,
        "time_per_epoch": 1234.5,
        "time_per_step": 0.123,
        "max_gpu_mem_MiB": 12345.6,
        "max_rss_MiB": 23456.7,
        "rss_growth_MiB": 1234.5,
        "train_seconds": 81234.0,
        "wall_seconds": 91234.0,
        "energy_wh": 1234.5,
        "latency_ms": 3.21,
        "latency_p95_ms": 4.32,
        "inference_ms_per_example": 0.123,
        "inference_examples_per_s": 8123.4,
        "tokenize_ms_per_example": 0.234,
    }
    made = [make.finetune(name, seed, costs=dict(costs)) for name in ("sdpa", "performer") for seed in range(3)]
    browser.open(page([*made, make.baseline()]), width=1032)  # A4 across, less its margins
    browser.call("Emulation.setEmulatedMedia", media="print")
    try:
        lines = (
            "[...document.querySelectorAll('.num')].filter(cell => cell.tagName === 'TD' && !cell.querySelector('small') "
            "&& cell.clientHeight).map(cell => { const range = document.createRange(); range.selectNodeContents(cell); "
            "return range.getClientRects().length; })"
        )
        assert set(browser.run(lines)) - {0} == {1}  # 0: folded away
        sizes = "[...document.querySelectorAll('table')].filter(t => t.clientHeight).map(t => Math.round(t.getBoundingClientRect().right))"
        assert max(browser.run(sizes)) <= 1032
    finally:
        browser.call("Emulation.setEmulatedMedia", media="")
