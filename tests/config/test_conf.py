"""Every YAML of conf/ composes, binds to the signature of its target and builds. Studies: test_experiments.py."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tests.conftest import ROOT
from tests.pairwise import spread
from xcls.build import make_classifier
from xcls.config import defaults
from xcls.config.compose import TARGET_NODES
from xcls.config.limits import check
from xcls.config.schema import Config, UserError
from xcls.config.targets import check_node, parameters

GROUPS = sorted(p.name for p in (ROOT / "conf").iterdir() if p.is_dir() and p.name not in ("hydra", "experiment"))
OPTIONS = [(group, path.stem) for group in GROUPS for path in sorted((ROOT / "conf" / group).glob("*.yaml"))]


def composed(*overrides: str) -> Config:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        tree = compose("config", overrides=list(overrides))
    return OmegaConf.to_object(
        OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.to_container(tree, resolve=True))
    )


def test_the_schema_has_the_defaults_of_conf() -> None:
    made = composed()
    made.attention = made.position = made.dataset.source = None  # typed by their classes
    assert made == Config()


def test_a_default_that_is_missing_or_unreadable_is_named_with_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = shutil.copytree(ROOT / "conf", tmp_path / "conf")
    monkeypatch.setattr(defaults, "CONF", conf)
    monkeypatch.setattr(defaults, "shipped", defaults.shipped.__wrapped__)  # without its cache
    main, tiny = conf / "config.yaml", conf / "size" / "tiny.yaml"
    main.write_text(
        main.read_text().replace("- bench: attention", "- bench: step").replace("- size: tiny", "- size: base")
    )
    assert Config().size.width == 128  # another option in `defaults` is no other default of a key
    tiny.write_text("".join(line for line in tiny.open() if not line.startswith("dropout:")))
    with pytest.raises(UserError, match="tiny.yaml: the key dropout"):
        Config()
    tiny.write_text("width: [")
    with pytest.raises(yaml.YAMLError, match="tiny.yaml"):
        Config()


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=[f"{g}={o}" for g, o in OPTIONS])
def test_every_option_composes_and_is_possible(group: str, option: str) -> None:
    config = composed(f"{group}={option}")
    assert check(config) is None
    for node, (home, given) in TARGET_NODES.items():
        value = config.dataset.source if node == "dataset.source" else getattr(config, node)
        assert check_node(node, value, given, home=home) is None
    written = yaml.safe_load((ROOT / "conf" / group / f"{option}.yaml").read_text())
    value = getattr(config, group)
    assert (
        group == "mode" or written.keys() - {"defaults"} <= (value if isinstance(value, dict) else vars(value)).keys()
    )


@pytest.mark.parametrize("group", ["attention", "position"])
def test_a_yaml_names_every_hyperparameter(group: str) -> None:
    for path in sorted((ROOT / "conf" / group).glob("*.yaml")):
        node = yaml.safe_load(path.read_text())
        assert node.keys() - {"_target_", "name"} == parameters(node["_target_"]).keys() - TARGET_NODES[group][1], path


@pytest.mark.parametrize(
    ("attention", "position"),
    spread(*(sorted(p.stem for p in (ROOT / "conf" / group).glob("*.yaml")) for group in ("attention", "position"))),
)
def test_every_pair_builds_and_trains_a_step(attention: str, position: str) -> None:
    config = composed(
        f"attention={attention}",
        f"position={position}",
        "size.width=16",
        "size.num_heads=2",
        "size.feed_forward=16",
        "seq_len=16",
    )
    torch.manual_seed(0)
    model = make_classifier(config, vocab_size=30, classes=["a", "b"])
    ids, real = torch.randint(5, 30, (2, 11)), torch.ones(2, 11, dtype=torch.bool)
    real[1, 7:] = False
    logits = model(ids, real)
    logits.sum().backward()
    assert logits.shape == (2, 2) and logits.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
