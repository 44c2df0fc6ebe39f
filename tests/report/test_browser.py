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
TABLE = "document.querySelector('#groups-0 table')"
BOX = "(place => (b => [b.left, b.top, b.right, b.bottom])(document.querySelector(place).getBoundingClientRect()))"


@pytest.fixture(scope="module")
def browser():
    with Browser() as started:
        yield started


@pytest.fixture
def page(make, tmp_path):
    def written(made=None):
        report(make, tmp_path, made, plots=True)
        return tmp_path / "out" / "index.html"

    return written


def column_of(browser, number):
    return browser.run(f"[...{TABLE}.tBodies[0].rows].map(row => row.cells[{number}].textContent)")


def test_nothing_on_the_console_and_nothing_from_the_network(browser, page):
    browser.open(page())
    assert browser.run("document.title").startswith("Attention mechanisms for text classification: demo")
    assert browser.said() == [] and browser.requested() == []
    assert browser.run("[...document.images].every(image => image.complete && image.naturalWidth > 300)") is True


def test_a_click_sorts_numbers_and_the_keyboard_names_and_gaps_come_last(browser, page):
    browser.open(page())
    column = browser.run(
        f"[...{TABLE}.tHead.rows[0].cells].findIndex(cell => cell.textContent.startsWith('time/epoch'))"
    )
    head = f"{TABLE}.tHead.rows[0].cells[{column}]"
    for order in ("ascending", "descending"):
        browser.run(f"{head}.querySelector('button').click()")
        found = column_of(browser, column)
        numbers = [float(text.split()[0]) for text in found if text != "–"]
        assert numbers == sorted(numbers, reverse=order == "descending") and len(numbers) >= 4 and found[-1] == "–"
        assert browser.run(f"{head}.getAttribute('aria-sort')") == order
    browser.run(f"{TABLE}.tHead.rows[0].cells[0].querySelector('button').focus()")
    browser.press("Enter", 13, "\r")
    names = column_of(browser, 0)
    assert names == sorted(names, key=str.casefold)


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_the_page_never_scrolls_sideways_but_a_wide_table_does(browser, page, width):
    browser.open(page(), width=width, height=844)
    assert browser.run("document.documentElement.scrollWidth") <= width
    frames = browser.run("[...document.querySelectorAll('.scroll')].map(box => [box.scrollWidth, box.clientWidth])")
    assert any(whole > shown for whole, shown in frames)
    whole, shown = browser.run(
        "(box => [box.scrollWidth, box.clientWidth])(document.querySelector('#dataset-0 .scroll'))"
    )
    assert (whole > shown) is (width == 390)  # on a phone the matrix scrolls in its own frame
    shot = imread(io.BytesIO(browser.picture()), format="png")
    assert shot.shape[:2] == (844, width) and np.std(shot[..., :3]) > 0.05
    assert 0 < browser.run(f"{BOX}('.headline')")[1] < 400


@pytest.mark.parametrize("datasets", [1, 2])
def test_headline_matrix_and_plot_are_the_first_screen_on_a_desk(browser, page, make, datasets):
    """All verdicts in sight at 1280 x 900, the matrix not cut and not scrolling, quality against cost beside it."""
    made = records(make)
    for record in [*make.seeds("sdpa"), make.baseline()] if datasets == 2 else ():
        record.choices["dataset"], record.run = "other", f"other-{record.run}"
        record.data["fingerprint"] = "e" * 64
        made.append(record)
    browser.open(page(made), width=1280)
    matrix, plot, line = (
        browser.run(f"{BOX}('#dataset-0 {place}')") for place in (".matrix", "figure img", ".headline")
    )
    assert browser.run("(b => b.scrollWidth <= b.clientWidth)(document.querySelector('#dataset-0 .scroll'))") is True
    assert line[3] <= matrix[1] and matrix[2] <= plot[0] and plot[2] <= 1280 and max(matrix[3], plot[3]) <= 900
    assert line[3] - line[1] < 40  # one line
    heads = browser.run("[...document.querySelector('.matrix').tHead.rows[0].cells].map(cell => cell.textContent)")
    assert heads[0] == "mechanism" and heads[-1] == "verdict" and len(heads) == 7
    signs = browser.run("[...document.querySelectorAll('#dataset-0 .matrix td b')].map(cell => cell.textContent[0])")
    assert set(signs) == {"✓", "✗"}


def test_what_a_run_contains_is_shown_and_not_run(browser, page, make):
    evil = '<img src=x onerror="document.title=1"><svg onload=alert(1)>' + EVIL
    fields = {"study": evil, "config": {evil: evil}, "versions": {"torch": evil}, "commit": evil}
    made = [make.finetune(seed=s, **fields) for s in range(3)]
    made.append(make.finetune(seed=3, status="failed", cause=evil))
    for record in made:
        record.choices |= {"attention": evil, "dataset": evil}
    file = page(made)
    browser.open(file)
    assert browser.said() == [] and browser.requested() == []
    assert browser.run("document.querySelectorAll('svg, [onerror], [onload], script').length") == 1
    assert evil in browser.run("document.querySelector('.study').textContent")
    text = file.read_text(encoding="utf-8").replace("</main>", "<script>document.title = 'taken'</script></main>")
    file.write_text(text, encoding="utf-8")
    browser.open(file)  # a script that gets in is refused by the policy
    assert browser.run("document.title") != "taken" and any("Content Security" in line for line in browser.said())
