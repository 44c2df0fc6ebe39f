"""A report from W&B alone: from offline folders, read for real, and from a stand-in server by the public API."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import SMALL, Project
from tests.wandb_server import WandbServer
from xcls.config.schema import UserError
from xcls.report.load import collect
from xcls.report.wandb_runs import is_wandb
from xcls.runs.record import Events, plain, read_record, without_secrets
from xcls.runs.wandb_file import BLOCK, read_segment, read_segments

OFFLINE = [*(word for word in SMALL if not word.startswith("wandb=")), "wandb=offline"]
WHERE = ("folder",)  # the only column that may differ: it says where the record was read


def command(
    project: Project, server: WandbServer, *words: str, script: str = "report.py"
) -> subprocess.CompletedProcess[str]:
    """Runs a command that reaches the stand-in server; an import of torch by report.py would fail."""
    broken = project.folder / "no_torch"
    (broken / "torch").mkdir(parents=True, exist_ok=True)
    (broken / "torch" / "__init__.py").write_text(
        "raise ImportError('the report must not need torch')", encoding="utf-8"
    )
    path = {"PYTHONPATH": str(broken)} if script == "report.py" else {}
    environment = {**project.environment, **server.environment(project.folder / "home"), **path}
    line = (
        [sys.executable, "-m", "wandb", *words]
        if script == "wandb"
        else project.command(*words, script=script, small=False)
    )
    return subprocess.run(line, cwd=project.folder, env=environment, capture_output=True, text=True, timeout=240)


def results(project: Project, out: str) -> list[dict[str, str]]:
    """The rows of a report's results.csv."""
    with open(project.folder / out / "results.csv", newline="", encoding="utf-8") as file:
        return [{key: value for key, value in row.items() if key not in WHERE} for row in csv.DictReader(file)]


def report(project: Project, server: WandbServer, runs: str, out: str) -> list[dict[str, str]]:
    """Makes a report, which must not need torch, and gives the rows of its results.csv."""
    told = command(project, server, f"runs=[{runs}]", f"out={out}")
    assert told.returncode == 0, told.stderr
    return results(project, out)


def assert_same_row_from_everywhere(project: Project, server: WandbServer, folder: Path) -> dict[str, str]:
    """The row of a run that is in W&B too is the same from its folder, its offline files and the server; gives it."""
    run_id = read_record(folder).wandb_id
    segment = sorted((folder / "wandb").glob("offline-run-*"))[0]
    places = {"here": folder, "offline": segment, "server": f"wandb:lab/xcls/{run_id}"}
    rows = {name: report(project, server, str(place), name) for name, place in places.items()}
    assert len(rows["here"]) == 1 and rows["offline"] == rows["here"] == rows["server"]
    for part in ("offline", "lab/xcls"):
        for name in ("metrics.csv", "record.json"):
            assert (project.folder / "multirun/wandb" / part / run_id / name).read_bytes() == (
                folder / name
            ).read_bytes()
    assert server.unknown == []
    return rows["here"][0]


@pytest.mark.slow
def test_the_same_row_from_the_folder_from_offline_files_and_from_the_server(make, project: Project) -> None:
    (folder,) = (path.parent for path in make.save([make.finetune()], project.folder).rglob("record.json"))
    for split in ("validation", "test"):
        Events(folder).add("evaluation", {"split": split, "checkpoint_step": 10, "macro_f1": 0.5})
    with WandbServer() as server:
        environment = {**project.environment, **server.environment(project.folder / "home")}
        for mode in ("offline", "online"):
            line = [sys.executable, "-m", "xcls.train.wandb_copy", str(folder), "--mode", mode]
            subprocess.run(line, cwd=project.folder, env=environment, check=True, capture_output=True)
        assert assert_same_row_from_everywhere(project, server, folder)["macro_f1"] == "0.9"
        for wrong, said in (
            ("wandb:lab/xcls/nobody", "nobody"),
            ("wandb:nobody", "entity"),
            ("wandb:lab/../x", "entity"),
        ):
            told = command(project, server, f"runs=[{wrong}]")
            assert told.returncode == 2 and said in told.stderr and "Traceback" not in told.stderr


@pytest.mark.slow
def test_a_real_run_its_sync_and_the_same_row(project: Project) -> None:
    with WandbServer() as server:
        made = command(project, server, *OFFLINE, "exp=a", script="run.py")
        assert made.returncode == 0, made.stderr
        assert command(project, server, "mode=eval", "exp=a", script="run.py").returncode == 0
        folder = project.folder / "finetune" / "a"
        assert command(project, server, "sync", str(folder / "wandb"), script="wandb").returncode == 0
        row = assert_same_row_from_everywhere(project, server, folder)
        assert row["test_macro_f1"] and row["finetuning.max_steps"] == "4"
        (run,) = server.runs.values()
        assert (
            run.fields["displayName"] == "a"
            and run.history[-1]["eval.test/macro_f1"] == run.history[-2]["test/macro_f1"]
        )
        notes = collect([project.folder / "multirun/wandb/offline" / run.id], project.folder).notes
        assert len(notes) == 1 and "predictions.parquet is gone" in notes[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"), [({"WANDB_API_KEY": None}, "key"), ({"WANDB_BASE_URL": "http://127.0.0.1:9"}, "127.0.0.1:9")]
)
def test_no_key_and_no_network_are_told(change: dict[str, str | None], said: str, project: Project) -> None:
    with WandbServer() as server:
        environment = {**project.environment, **server.environment(project.folder / "home"), **change}
    environment = {key: value for key, value in environment.items() if value is not None}
    line = project.command("runs=[wandb:lab/xcls/abc]", script="report.py", small=False)
    told = subprocess.run(
        line, cwd=project.folder, env=environment, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
    )
    assert told.returncode == 2 and "wandb:lab/xcls/abc" in told.stderr and said in told.stderr, told.stderr
    assert "Traceback" not in told.stderr and not (project.folder / "multirun" / "report").exists()


def log_file(path: Path, records: list[bytes]) -> None:
    """Writes a .wandb file as W&B does, apart from W&B's code: blocks of 32 KiB, each piece with its checksum."""
    import struct
    import zlib

    content = bytearray(b":W&B" + struct.pack("<HB", 0xBEE1, 0))
    for data in records:
        first = True
        while first or data:
            left = BLOCK - len(content) % BLOCK
            if left < 7:
                content += b"\0" * left
                continue
            piece, data = data[: left - 7], data[left - 7 :]
            kind = (1 if not data else 2) if first else (4 if not data else 3)
            content += struct.pack("<IHB", zlib.crc32(bytes([kind]) + piece), len(piece), kind) + piece
            first = False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def segment(folder: Path, name: str, *, text: str = "x", rows: int = 3) -> Path:
    """An offline segment of the run `name`, made of W&B's own protobuf records."""
    from wandb.proto import wandb_internal_pb2 as proto

    run, summary = proto.Record(), proto.Record()
    run.run.run_id, run.run.project = name, "xcls"
    update = summary.summary.update.add()
    update.nested_key.append("long")
    update.value_json = f'"{text}"'
    records = [run, summary]
    for number in range(rows):
        record = proto.Record()
        item = record.history.item.add()
        item.key, item.value_json = "row", str(number)
        records.append(record)
    path = folder / f"offline-run-20260101_000000-{name}" / f"run-{name}.wandb"
    log_file(path, [record.SerializeToString() for record in records])
    return path


@pytest.mark.parametrize("size", [10, BLOCK - 40, BLOCK, 3 * BLOCK + 5])
def test_a_file_is_read_across_its_blocks(size: int, tmp_path: Path) -> None:
    found = read_segment(segment(tmp_path, "abc", text="y" * size, rows=2000))
    assert found.id == "abc" and found.summary == {"long": "y" * size}
    assert [row["row"] for row in found.rows] == list(range(2000))


def test_a_file_that_was_cut_short_or_damaged_is_read_up_to_there(tmp_path: Path) -> None:
    path = segment(tmp_path, "abc", rows=100)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert [row["row"] for row in read_segment(path).rows] == list(range(99))
    path.write_bytes(whole[: len(whole) // 2] + b"\xff" + whole[len(whole) // 2 + 1 :])
    assert 0 < len(read_segment(path).rows) < 99
    path.write_bytes(whole[:7])
    with pytest.raises(ValueError, match="holds no run"):
        read_segment(path)
    assert read_segments(tmp_path) == []


def test_what_is_no_run_of_ours_is_listed_and_spoils_nothing(make, tmp_path: Path) -> None:
    folder = tmp_path / "old" / "wandb"
    segment(folder, "strange")
    segment(folder, "cut").write_bytes(b":W&B")
    log_file(folder / "offline-run-20260101_000001-evil" / "run-evil.wandb", [])
    sweep = make.save([make.finetune()], tmp_path)
    found = collect([sweep, folder], tmp_path)
    assert len(found.runs) == 1
    assert len(found.unreadable) == 3 and any("no run of xcls" in item.reason for item in found.unreadable)


@pytest.mark.parametrize("name", ["../../outside", "a/b", ".hidden"])
def test_a_run_id_cannot_lead_out_of_the_folder(name: str, tmp_path: Path) -> None:
    path = segment(tmp_path / "wandb", "plain")
    other = segment(tmp_path / "aside", "x")
    from wandb.proto import wandb_internal_pb2 as proto

    run = proto.Record()
    run.run.run_id = name
    log_file(path, [run.SerializeToString()])
    found = collect([tmp_path / "wandb"], tmp_path)
    assert other.is_file() and found.runs == [] and "would not give" in found.unreadable[0].reason
    assert not (tmp_path / "multirun").exists()


def test_what_counts_as_w_and_b(tmp_path: Path) -> None:
    path = segment(tmp_path / "finetune" / "a" / "wandb", "abc")
    for given in ("wandb:a/b/c", "finetune/a/wandb", path.parent, path):
        assert is_wandb(given, tmp_path), given
    for given in ("finetune", "finetune/a", "multirun/wandb", "nowhere"):
        assert not is_wandb(given, tmp_path), given
    with pytest.raises(UserError, match="nowhere"):
        collect(["nowhere"], tmp_path)


@pytest.mark.slow
def test_no_secret_is_in_anything_that_is_left_behind(project: Project) -> None:
    secrets = {
        "HF_TOKEN": "hf_" + "Q7vZ" * 8,
        "MY_SERVICE_PASSWORD": "correct-horse-battery",
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI9K7MDENG",
    }
    with WandbServer() as server:
        keys = {**server.environment(project.folder / "home"), **secrets}
        typed = "sT4yH1dden"
        data = project.folder / f"data_token={typed}"
        data.mkdir()
        os.rename(project.folder / "rows.csv", data / "rows.csv")
        words = [word for word in OFFLINE if not word.startswith("dataset.path")] + [
            f"'dataset.path=\"{data.name}/rows.csv\"'".strip("'")
        ]
        environment = {**project.environment, **keys}
        for mode in (
            ["mode=pretrain", "exp=p"],
            ["exp=f", "pretrain=p"],
            ["exp=broken", "finetuning.lr=10", "finetuning.clip_norm=0", f'study="with {secrets["HF_TOKEN"]}"'],
        ):
            line = project.command(*words, *mode, script="run.py", small=False)
            told = subprocess.run(
                line, cwd=project.folder, env=environment, capture_output=True, text=True, timeout=240
            )
            assert told.returncode in (0, 1), told.stderr
        told = subprocess.run(
            project.command(script="report.py", small=False),
            cwd=project.folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert told.returncode == 0, told.stderr
    hidden = [keys["WANDB_API_KEY"], typed, *secrets.values()]
    looked = 0
    for top in ("pretrain", "finetune", "multirun"):
        for path in (project.folder / top).rglob("*"):
            if path.is_file():
                content, looked = path.read_bytes(), looked + 1
                assert not [word for word in hidden if word.encode() in content], path
    assert looked > 40 and "***" in (project.folder / "finetune" / "f" / "record.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("dataset.path=data/token=sT4yH1dden/rows.csv", "dataset.path=data/token=***/rows.csv"),
        ("https://hub/x?access_token=abcdefgh&rows=3", "https://hub/x?access_token=***&rows=3"),
        ("https://me:pass-word@host/x", "https://me:***@host/x"),
        ("Authorization: Bearer abc.def-ghi", "Authorization: Bearer ***"),
        ("hf_abcdefghijklmnopQRSTUV in a message", "*** in a message"),
        ("the key of-this-machine in a message", "the key *** in a message"),
        ("wandb.api_key: sT4yH1dden", "wandb.api_key: ***"),
        ('{"token": "sT4yH1dden", "rows": 3}', '{"token": "***", "rows": 3}'),
        ("{'hf_token': 'correct horse'}", "{'hf_token': '***'}"),
        (r'"{\"api-key\": \"sT4yH1dden\"}"', r'"{\"api-key\": \"***\"}"'),
        ("run --token sT4yH1dden --rows 3", "run --token *** --rows 3"),
        ("run --hf-token abcdefgh", "run --hf-token ***"),
        ("export MY_TOKEN: sT4yH1dden", "export MY_TOKEN: ***"),
        ("aws_secret_access_key=ab/cd+ef12", "aws_secret_access_key=***"),
        ("git clone https://sT4yH1dden@host/x", "git clone https://***@host/x"),
        ("ghp_abcdefghijklmnop1234 and github_pat_11ABCDEFG0123456789", "*** and ***"),
        ("sk-abcdefghijklmnop1234, sk-proj-Ab1Cd2Ef3Gh4Ij5Kl6-Mn7", "***, ***"),
        ("AKIAIOSFODNN7EXAMPLE was refused", "*** was refused"),
        ("Authorization: Basic bWU6cGFzcw==", "Authorization: Basic ***"),
        ("'Authorization': 'Bearer ab/cd=='", "'Authorization': 'Bearer ***'"),
        ("https://s3/x?X-Amz-Signature=0a1b2c3d&rows=3", "https://s3/x?X-Amz-Signature=***&rows=3"),
        ("https://blob/x?sv=1&sig=ab%2Fcd", "https://blob/x?sv=1&sig=***"),
        ("password: hunter22", "password: ***"),
        ("token=/no/such/file/Ab1", "token=***"),
        ("token=/etc/passwd", None),
        ("the word-pass of DB_PASS, the pat-of-someone, and /not/a/path/9", "the *** of DB_PASS, the ***, and ***"),
        (
            "the token of a word; Unexpected token: position; a token is [UNK]; --token must be set; tokens: 12345678",
            None,
        ),
        (
            "tokenizer.kind: wordpiece tokenizer.vocab_size: 30000000 tokens_per_s: 34,564.25 finetuning.token_share: 0.12345",
            None,
        ),
        ('{"unk_token": "[UNK]", "pad_token": "<pad>"}', None),
        (
            "exp=sk-large-run-2024-11-26 task-0123456789abcdefgh git@host:x ssh://git@host/x basic statistics of it",
            None,
        ),
        (
            "http://127.0.0.1:8080/x tokenizer.path=vocab.json token=x commit=0123456789abcdef0123456789abcdef01234567",
            None,
        ),
    ],
)
def test_secrets_are_masked_and_nothing_else(text: str, left: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "of-this-machine")
    monkeypatch.setenv("DB_PASS", "word-pass")
    monkeypatch.setenv("GITHUB_PAT", "pat-of-someone")
    monkeypatch.setenv("OTHER_TOKEN", "/not/a/path/9")
    monkeypatch.setenv("XPATH", "basic statistics")
    assert without_secrets(text) == (text if left is None else left)
    assert plain({"a": [text], "b": 1.5}) == {"a": [without_secrets(text)], "b": 1.5}


@pytest.mark.parametrize("part", ["-", "sk-", "a-", "x", ".", "token: ", "://", '\\"', "--token ", "1"])
def test_long_texts_are_looked_through_soon(part: str) -> None:
    began = time.monotonic()
    assert len(without_secrets("sk-" + part * (60_000 // len(part)))) > 0
    assert time.monotonic() - began < 20  # a second even on a slow machine; without bounds in the patterns, minutes
