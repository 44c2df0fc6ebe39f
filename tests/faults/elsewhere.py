"""The tests outside this folder that try a fault, each by its name, and how often one was tried.

A test that tries none (that a good file is read, that a page has its tables) is not named here, though it may stand in
the same file. What a test of hypothesis tries in one case is a row of its own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from tests.faults.tally import Tally

ROOT = Path(__file__).resolve().parents[2]
FUZZ = "tests/config/test_fuzz.py"
LIST: dict[str, dict[str, str]] = {  # kind of fault -> file -> its tests without their `test_`; '': all of them
    "training: resume, bad numbers, lack of memory, signals": {
        "tests/train/test_loop.py": """resume_after_a_signal_is_exact resume_after_a_crash_is_exact
            an_evaluation_cut_short_is_made_again a_checkpoint_of_another_configuration_is_refused
            bad_numbers_name_step_rows_and_layer""",
        "tests/train/test_faults.py": "",
        "tests/train/test_run_logger.py": "",
    },
    "checkpoint files: damage, other formats, a stranger's code": {"tests/train/test_checkpoint.py": ""},
    "W&B unreachable, slow; secrets": {
        "tests/train/test_tracking.py": """w_and_b_fails_and_the_run_does_not a_thread_that_hangs_is_not_waited_for
            a_secret_in_an_error_or_a_warning_is_written_nowhere""",
        "tests/launcher/test_real_sweep.py": "",
    },
    "bad data": {
        "tests/data/test_bad_data.py": "",
        "tests/data/test_readers.py": """a_bad_file_is_named_with_row_and_remedy a_parquet_file_cut_short_is_refused
            nul_bytes_are_read_as_spaces_and_noted a_document_of_ten_megabytes_is_read""",
        "tests/data/test_splits.py": """missing_rows_are_counted_and_skipped_or_refused a_leak_is_counted_warned_about_and_dropped_if_wanted
            contrary_labels_are_counted classes_that_cannot_be_learnt_are_said""",
        "tests/data/test_files.py": "labels_that_cannot_be_learnt_are_refused a_folder_that_holds_nothing_known_is_listed",
        "tests/data/test_rows.py": "a_file_that_changes_while_it_is_read_leaves_nothing",
    },
    "bad configuration and names": {
        "tests/config/test_names.py": "",
        "tests/config/test_command_line.py": "bad_input_is_refused_before_anything_is_written",
        "tests/config/test_schema.py": """an_impossible_value_is_refused_with_its_key every_fault_is_named_at_once a_name_never_leaves_its_folder
            a_key_cannot_be_a_value_and_a_node texts_that_no_file_holds_are_refused""",
        "tests/config/test_commands.py": "an_exp_that_has_run_is_refused",
    },
    "records that lie or are cut, hostile texts, in the report": {
        "tests/report/test_collect.py": """unreadable_records_are_listed records_that_no_run_wrote_are_listed
            a_changed_file_that_the_record_vouches_for_is_listed_and_a_lost_one_is_noted
            links_and_what_is_no_file_do_not_hang_the_report""",
        "tests/report/test_page.py": "nothing_from_a_record_reaches_the_page_unescaped",
        "tests/report/test_report.py": "texts_that_a_spreadsheet_would_run_get_an_apostrophe",
        "tests/report/test_intervals.py": "unusable_predictions_say_why",
    },
    "two at once": {
        "tests/stages/test_two_at_once.py": "",
        "tests/data/test_cache.py": """four_processes_build_once a_killed_builder_leaves_neither_a_half_file_nor_a_lock
            a_failed_build_leaves_nothing""",
    },
}


def identifiers(tests: dict[str, str]) -> list[str]:
    """What pytest calls them: `file`, or `file::test_name`."""
    return [
        found
        for file, names in tests.items()
        for found in ([f"{file}::test_{name}" for name in names.split()] or [file])
    ]


def run_tests(what: str, tests: dict[str, str]) -> Tally:
    """These tests, the slow ones too; each case of one is a fault that was tried."""
    cases, problems = _cases(identifiers(tests), "slow or not slow")
    shown = ", ".join(f"`{file}`" for file in tests)
    return Tally(f"{what}: tests in {shown}", len(cases), 0, "each test says what must not be", problems=problems)


def run_fuzz(inputs: int) -> Tally:
    """`inputs` command lines and YAML files out of hypothesis, and how many of them were really tried."""
    cases, problems = _cases([FUZZ, "-k", "test_many"], "slow", XCLS_FUZZ=str(inputs))
    printed = [
        re.findall(r"and before: (\d+) refused, (\d+) accepted", case.findtext("system-out") or "") for case in cases
    ]
    tried = max(
        (sum(map(int, found)) for each in printed for found in each), default=0
    )  # they count on from test to test
    if tried < inputs:
        problems.append(f"{tried} inputs were tried, not {inputs}")
    what = f"command lines and YAML files that were drawn at random (`{FUZZ}`)"
    return Tally(what, tried, 0, "no traceback, no hang, no write elsewhere", problems=problems)


def _cases(words: list[str], marks: str, **environment: str) -> tuple[list[ElementTree.Element], list[str]]:
    """The cases that pytest has run for `words`, and the names of those that failed; what was skipped was not tried."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-o",
            "junit_logging=system-out",
            "-m",
            marks,
        ]
        done = subprocess.run(
            [*command, f"--junitxml={report}", *words],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            env={**os.environ, **environment},
        )
        cases = list(ElementTree.parse(report).getroot().iter("testcase")) if report.exists() else []
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    problems = [f"{case.get('classname')}::{case.get('name')}" for case in failed]
    if done.returncode not in (0, 1):  # a test that is not there, say
        problems.append(f"pytest ended with {done.returncode}: {done.stdout.strip()[-300:]}")
    return [case for case in cases if case.find("skipped") is None], problems
