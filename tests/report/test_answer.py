"""The answer in words: what is compared with what, what is open, and what the reader is told to run next."""

from __future__ import annotations

from tests.report.test_page import page_of, words
from xcls.report.answer_lines import doubts
from xcls.report.differences import Interval
from xcls.report.verdict import FAIL, Claim, Measured, Verdict

GOOD = (0.91, 0.911, 0.912)


def sized(make, attention, size, scores=GOOD, **options):
    """Runs of another model size."""
    made = make.seeds(attention, scores, config={"size.width": 128 if size == "tiny" else 256}, **options)
    for record in made:
        record.choices["size"], record.run = size, record.run.replace("tiny", size)
    return made


def placed(make, attention, device, **options):
    """Runs on another device, in folders of their own."""
    made = make.seeds(attention, GOOD, device={"name": device}, **options)
    for record in made:
        record.run += f"-{device}"
    return made


def test_across_sizes_savings_are_compared_and_not_times(make, tmp_path):
    made = [*sized(make, "sdpa", "tiny", time=2.0), *sized(make, "performer", "tiny", time=1.5),
            *sized(make, "sdpa", "mini", time=20.0), *sized(make, "performer", "mini", time=10.0), make.baseline(0.80)]  # fmt: skip
    text = words(page_of(make, tmp_path, made))
    assert "Performer mini saves 50 % time" in text and "more time" not in text
    assert "Performer tiny passes too, and saves less time beside its own reference." in text


def test_across_devices_savings_are_compared_and_not_times(make, tmp_path):
    made = [*placed(make, "sdpa", "slow", time=100), *placed(make, "performer", "slow", time=60),
            *placed(make, "sdpa", "fast", time=4), *placed(make, "performer", "fast", time=3), make.baseline(0.8)]  # fmt: skip
    text = words(page_of(make, tmp_path, made))
    assert "Performer slow saves 40 % time" in text and "takes more time" not in text
    assert "Performer fast passes too, and saves less time beside its own reference." in text


def test_beside_the_same_reference_times_are_compared_and_of_equals_the_better_one_is_taken(make, tmp_path):
    made = [*make.seeds("sdpa", GOOD), *make.seeds("performer", GOOD, time=7.0),
            *make.seeds("reformer", (0.92, 0.921, 0.922), time=7.0), make.baseline(0.8)]  # fmt: skip
    text = words(page_of(make, tmp_path / "equal", made))
    assert "Reformer saves 30 % time" in text and "Performer passes too, in as much time." in text
    slower = [*made[:6], *make.seeds("reformer", GOOD, time=7.9), made[-1]]
    text = words(page_of(make, tmp_path / "slower", slower))
    assert "Performer saves 30 % time" in text and "Reformer passes too, and takes more time." in text


def test_what_can_never_be_judged_is_not_called_open_where_the_claims_length_was_run(make, tmp_path):
    made = [make.baseline(0.8)]
    for length, time in ((512, 10.0), (1024, 30.0)):
        made += make.seeds("sdpa", GOOD, seq_len=length, time=time)
        made += make.seeds("performer", GOOD, seq_len=length, time=2 * time)
    text = words(page_of(make, tmp_path, made))
    assert "Nothing passes: performer n512 does not meet every claim against sdpa." in text
    assert "no verdict yet on" not in text and "Next:" not in text and "add seq_len=512" not in text


def test_why_there_is_no_verdict_is_said_of_the_claims_length_where_it_was_run(make, tmp_path):
    made = [make.baseline(0.8), *make.seeds("performer", GOOD), *make.seeds("sdpa", GOOD, config={"finetuning.lr": 1.0})]
    for length in (1024, 2048):
        made += [*make.seeds("sdpa", GOOD, seq_len=length), *make.seeds("performer", GOOD, seq_len=length)]
    text = words(page_of(make, tmp_path, made))
    assert "No verdict yet: no sdpa run alike in everything but attention; the closest differs in finetuning.lr" in text
    assert "Next: Run sdpa with the settings and on the device of performer n512" in text


def test_where_the_reference_alone_was_run_at_the_claims_length_the_others_are_asked_for(make, tmp_path):
    made = [make.baseline(0.8), *make.seeds("sdpa", GOOD), *make.seeds("sdpa", GOOD, seq_len=1024)]
    made += make.seeds("performer", GOOD, seq_len=1024)
    text = words(page_of(make, tmp_path, made))
    assert "No verdict yet: seq_len is 1024; the claims are made at 512." in text
    assert "sdpa was run there, run the others there too: seq_len=512 in the same sweep." in text


def test_costs_that_were_measured_differently_are_said_so_on_the_first_screen_and_in_the_table(make, tmp_path):
    other = {"python": "3.11.7", "torch": "2.14.0"}
    made = [*make.seeds("sdpa", GOOD), *make.seeds("performer", GOOD, time=7.0, versions=other), make.baseline(0.8)]
    html = page_of(make, tmp_path, made)
    unlike = "easured differently: torch 2.14.0 against 2.13.0"
    box = words(html[html.index('<section class="answer') : html.index("What passing means")])
    assert f"it passes. M{unlike}." in box and f"beside sdpa (n = 3, m{unlike})" in box
    table = words(html[html.index('<section id="board-0"') :])
    assert "7 (0.70× †)" in table and f"†: performer and sdpa were m{unlike}." in table
    same = [*make.seeds("sdpa", GOOD), *make.seeds("performer", GOOD, time=7.0), make.baseline(0.8)]
    assert "†" not in page_of(make, tmp_path / "same", same)


def failing(*numbers, reason=""):
    """A verdict that fails by one claim of these numbers; each is (name, value, limit, low, high)."""
    measured = tuple(
        Measured(name, value, "<=", limit, interval=None if low is None else Interval(value, low, high))
        for name, value, limit, low, high in numbers
    )
    return Verdict(None, "sdpa", "validation", (Claim("WNF-2 quality", FAIL, measured, reason),))


def test_a_failure_is_open_only_where_every_number_that_fails_is_open():
    open_ = ("macro-F1 loss (pp)", 1.5, 1.0, 0.5, 2.5)
    assert doubts(failing(open_)) == (
        "the interval of its macro-F1 loss (+0.50 to +2.50 pp) spans its limit: these runs cannot tell"
    )
    alone = "the interval of its macro-F1 loss (+0.50 to +2.50 pp) spans its limit: of that alone these runs cannot tell"
    assert doubts(failing(open_, ("macro-F1 gain (pp)", 9.0, 1.0, 8.0, 10.0))) == alone
    assert doubts(failing(open_, ("macro-F1 spread (pp)", 3.0, 1.0, None, None))) == alone
    assert doubts(failing(open_, reason="seed 1: NaN in the loss")) == alone
    both = doubts(failing(open_, ("macro-F1 gain (pp)", 1.2, 1.0, 0.8, 2.0)))
    assert both.endswith("and its macro-F1 gain (+0.80 to +2.00 pp) span their limits: these runs cannot tell")
    assert doubts(failing(("time ratio", 1.2, 0.8, None, None))) == ""


def test_a_time_that_is_too_long_does_not_fail_where_the_memory_is_low_enough():
    saves = (("time ratio", 1.2, 0.8, None, None), ("memory ratio", 0.5, 0.8, None, None))
    assert doubts(failing(*saves, ("macro-F1 loss (pp)", 1.5, 1.0, 0.5, 2.5))).endswith(": these runs cannot tell")


def test_the_cheapest_that_is_as_good_is_named_where_it_is_not_the_one_recommended(make, tmp_path):
    made = [*make.seeds("sdpa", GOOD), *make.seeds("performer", GOOD, time=7.0), make.baseline(0.8)]
    assert "Cheapest within" not in words(page_of(make, tmp_path / "taken", made))
    fused = [*made, *make.seeds("sdpa_fused", GOOD, time=5.0), *make.seeds("window", (0.89, 0.89, 0.89), time=1.0)]
    text = words(page_of(make, tmp_path / "fused", fused))
    assert "Performer saves 30 % time" in text and "Cheapest within 1 pp of sdpa: sdpa_fused, 50 % less time" in text
    window = [*made, *make.seeds("window", GOOD, time=3.0)]
    told = words(page_of(make, tmp_path / "window", window))
    assert (
        "Cheapest within 1 pp of sdpa: window, 70 % less time, as much memory, macro-F1 +0.00 pp beside sdpa (n = 3); "
        "no claim is made for it." in told
    )
