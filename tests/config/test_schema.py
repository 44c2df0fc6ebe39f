"""What a configuration may be: limits, names, flat keys, files of runs, old names, rules that fill nulls."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.samples import make_classifier
from xcls.config.files import UNWRITABLE, check_texts, read_yaml, write_values
from xcls.config.limits import check
from xcls.config.rates import settle_rates, steps_between, total_steps
from xcls.config.renamed import MODULES, current
from xcls.config.schema import Config, Size, Training, UserError, check_name, flatten, unflatten
from xcls.config.targets import check_node, parameters
from xcls.train.optim import parameter_groups


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seq_len", 0),
        ("seq_len", 20_000),
        ("size.num_heads", 3),
        ("size.norm", "per"),
        ("finetuning.lr", float("nan")),
        ("finetuning.epochs", 0.0),
        ("masking.mask_share", 0.95),
        ("head.num_classes", 1),
        ("pretraining.select_by", "accuracy"),
        ("text", "body"),
        ("exp", "../../x"),
        ("exp", "a b"),
    ],
)
def test_an_impossible_value_is_refused_with_its_key(path: str, value: object) -> None:
    config = Config()
    node, *rest = path.split(".")
    setattr(getattr(config, node), rest[0], value) if rest else setattr(config, node, value)
    with pytest.raises(UserError, match=path):
        check(config)


def test_every_fault_is_named_at_once() -> None:
    config = Config()
    config.seq_len, config.size.dropout, config.hardware.dtype = 0, 2.0, "fp8"
    with pytest.raises(UserError) as error:
        check(config)
    keys = [line.split("=")[0] for line in str(error.value).splitlines()]
    assert keys == ["seq_len", "size.dropout", "hardware.dtype"]


@given(st.text(max_size=40))
def test_a_name_never_leaves_its_folder(name: str) -> None:
    try:
        check_name("exp", name)
    except UserError:
        return
    assert name and "/" not in name and "\\" not in name and not name.startswith(".") and name.isascii()


texts = st.sampled_from(["1e-3", "...", "null", "yes", "1:30", "2024-01-01", "<<", "*a", "!x", "a: b", "#x", "", " "])
texts |= st.text(max_size=20).filter(lambda text: not UNWRITABLE.search(text))
scalars = st.just(float("inf")) | st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
leaves = scalars | st.lists(texts | st.integers(), max_size=3)
keys = st.text(alphabet="abc_", min_size=1, max_size=4)


trees = st.recursive(leaves, lambda inner: st.dictionaries(keys, inner, min_size=1), max_leaves=8)


@given(st.dictionaries(keys, trees))
def test_flat_keys_come_back(tree: dict) -> None:
    assert unflatten(flatten(tree)) == tree


def test_a_key_cannot_be_a_value_and_a_node() -> None:
    with pytest.raises(UserError, match="size"):
        unflatten({"size": 3, "size.width": 4})


@pytest.mark.parametrize("value", ["a\0b", "\x1b[31m", "\udcff", "\u2028", ["fine", "a\x07"], "${oc.env:HOME}"])
def test_texts_that_no_file_holds_are_refused(value: object) -> None:
    assert check_texts({"study": "Zażółć: 🙂\ttab\nline", "dataset.extra": ["a", "b"], "seed": 1, "exp": None}) is None
    with pytest.raises(UserError, match="study="):
        check_texts({"study": value})


@given(st.dictionaries(st.sampled_from(["exp", "size.width", "size.depth", "study"]), leaves))
def test_what_is_written_is_read_again(values: dict) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_values(Path(folder) / "config.yaml", values, "Some values.")
        assert read_yaml(Path(folder) / "config.yaml") == values


@pytest.mark.parametrize(
    ("text", "expected"),
    [("lr: 1e-3", 1e-3), ("lr: -1E5", -1e5), ("lr: 2024-01-01", "2024-01-01"), ("lr: yes", True), ("lr:", None)],
)
def test_values_are_what_they_look_like(tmp_path: Path, text: str, expected: object) -> None:
    (tmp_path / "a.yaml").write_text(text)
    assert read_yaml(tmp_path / "a.yaml") == {"lr": expected}


@pytest.mark.parametrize(
    "content",
    [
        b"seed: 1\nseed: 2\n",
        b"size.width: 1\nsize: {width: 2}\n",
        b"a: &a {b: *a}",
        b"a: " + b"{b: " * 5000,
        b"5: 1",
        b"- 1",
        b"a: !!python/object/apply:os.system [x]",
        b"a: " + b"9" * 5000,
        b"a:\n\t- b",
        b"\xff\xfe",
        b"a: x" * 300_000,
    ],
)
def test_what_is_no_run_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match="a.yaml"):
        read_yaml(path)
    for name in ("/dev/zero", "/", "nowhere.yaml", "a\0b"):
        with pytest.raises(UserError):
            read_yaml(Path(name))


SIGNATURES = """
from __future__ import annotations
from typing import Literal, Optional
class Base:
    def __init__(self, *, given: int, rate: float = 0.5, kind: Literal["a", "b"] = "a", size: int | None = None,
                 on: bool = True, free: Optional[str] = None, names: list[str] | None = None) -> None: ...
class Grown(Base):
    def __init__(self, *, depth: int = 2, **shape) -> None:
        super().__init__(rate=depth / 10, **shape)
def build(*, needed: str): ...
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "some_mechanism.py").write_text(SIGNATURES)
    monkeypatch.syspath_prepend(tmp_path)
    return "some_mechanism"


def test_what_a_constructor_passes_on_is_taken_but_for_what_it_gives_itself(module: str) -> None:
    found = parameters(f"{module}.Grown")
    assert found is not None and list(found) == ["depth", "given", "kind", "size", "on", "free", "names"]
    fitting = {"depth": 3, "kind": "b", "size": None, "on": False, "free": "t", "names": ["a"]}
    assert check_node("attention", {"_target_": f"{module}.Grown", **fitting}, ("given",), home="some_") is None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rte": 1.0}, "attention.rte: unknown key. Did you mean 'rate'"),
        ({"rate": "fast"}, "attention.rate=fast"),
        ({"kind": "c"}, "Literal"),
        ({"size": True}, "attention.size"),
        ({"on": 1}, "attention.on"),
        ({"names": ["a", 1]}, "attention.names"),
        ({"names": [{"_target_": "os.system"}]}, "attention.names"),
        ({"_target_": "some_mechanism.Nope"}, "Nope"),
        ({"_target_": "some_mechanism.build"}, "needed"),
        ({"_target_": "os.system"}, "attention._target_=os.system"),
        ({"_target_": None}, "attention"),
    ],
)
def test_a_node_that_does_not_fit_its_class_is_refused(module: str, changes: dict, named: str) -> None:
    with pytest.raises(UserError) as error:
        check_node("attention", {"_target_": f"{module}.Base", **changes}, ("given",), home="some_")
    assert named in str(error.value)


OLD_KEYS = {"attention.block_size": 256, "attention.norm_in_stabiliser": True}


@pytest.mark.parametrize("module", MODULES)
def test_files_of_old_runs_are_read_under_today_s_names(module: str) -> None:
    name = {"performer": "performer_favor", "reformer": "reformer_lsh"}.get(module, module)
    attribute = "".join(part.capitalize() for part in module.split("_"))
    old = {"attention._target_": f"xcls.attention.{module}.{attribute}", "attention.name": name, "seed": 1, **OLD_KEYS}
    new = current(old)
    assert new["attention.name"] == module and new["seed"] == 1 and not set(OLD_KEYS) & set(new)
    assert parameters(new["attention._target_"]) is not None and current(new) == new


def test_a_setting_of_an_old_run_that_would_change_the_result_stays_to_be_refused() -> None:
    old = {"attention._target_": "xcls.attention.performer.Performer", "attention.norm_in_stabiliser": False}
    with pytest.raises(UserError, match="norm_in_stabiliser"):
        check_node("attention", unflatten(current(old))["attention"], ("num_heads", "head_dim", "layer", "seed"))
    assert current({"attention._target_": "os.system", **OLD_KEYS}) == {"attention._target_": "os.system", **OLD_KEYS}


LEFT_OPEN: dict[str, Any] = {"epochs": None, "min_epochs": 3.0, "min_steps": 400}


@pytest.mark.parametrize(
    ("changes", "steps_per_epoch", "total", "interval"),
    [
        ({}, 34, 400, 40),  # little text gets more epochs, and does not evaluate after each of them
        ({}, 1407, 4221, 1407),
        ({"epochs": 2.0}, 34, 68, 34),
        ({"epochs": 0.001}, 34, 1, 34),
        ({"max_steps": 7, "epochs": 2.0}, 34, 7, 34),
        ({"min_steps": 0}, 34, 102, 34),
    ],
)
def test_how_many_steps_a_training_has(changes: dict, steps_per_epoch: int, total: int, interval: int) -> None:
    training = Training(**{**LEFT_OPEN, **changes})
    assert total_steps(training, steps_per_epoch) == total and steps_between(training, steps_per_epoch) == interval


@pytest.mark.parametrize(("width", "lr"), [(128, 1e-3), (256, 5e-4), (512, 2.5e-4), (768, 1.67e-4)])
@pytest.mark.parametrize(("pretrain", "factor"), [(None, 10.0), ("auto", 1.0)])
def test_rates_follow_from_the_width_and_the_start(width: int, lr: float, pretrain: str | None, factor: float) -> None:
    training, other = Training(lr=None, embedding_lr_factor=None), Training(lr=0.3, embedding_lr_factor=2.0)
    settle_rates(Config(size=Size(width=width), finetuning=training, pretraining=other, pretrain=pretrain))
    assert (training.lr, training.embedding_lr_factor) == (lr, factor)
    assert (other.lr, other.embedding_lr_factor) == (0.3, 2.0)  # what is set stays


def test_the_token_embedding_alone_has_a_rate_of_its_own() -> None:
    model = make_classifier("sdpa", "learned")
    *others, apart = parameter_groups(model, Training(embedding_lr_factor=10.0))
    assert [id(p) for p in apart["params"]] == [id(model.encoder.token_embedding.weight)] and apart["lr_factor"] == 10.0
    assert all("lr_factor" not in group for group in others)
    assert sum(len(group["params"]) for group in (*others, apart)) == len(list(model.parameters()))
