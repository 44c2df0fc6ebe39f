"""Every YAML of conf/ composes, binds to the signature of its target and builds. Studies: test_experiments.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tests.conftest import ROOT
from tests.pairwise import spread
from xcls.build import make_classifier
from xcls.config.limits import check
from xcls.config.schema import Config, flatten
from xcls.config.targets import check_node, parameters

GROUPS = sorted(p.name for p in (ROOT / "conf").iterdir() if p.is_dir() and p.name not in ("hydra", "experiment"))
OPTIONS = [(group, path.stem) for group in GROUPS for path in sorted((ROOT / "conf" / group).glob("*.yaml"))]


def composed(*overrides: str) -> Config:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        tree = compose("config", overrides=list(overrides))
    return OmegaConf.to_object(
        OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.to_container(tree, resolve=True))
    )


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=[f"{g}={o}" for g, o in OPTIONS])
def test_every_option_composes_and_is_possible(group: str, option: str) -> None:
    config = composed(f"{group}={option}")
    assert check(config) is None
    if group not in ("mode",):
        assert yaml.safe_load((ROOT / "conf" / group / f"{option}.yaml").read_text()).keys() - {"defaults"} <= set(
            flatten_node(config, group)
        )


def flatten_node(config: Config, group: str) -> dict:
    value = getattr(config, group)
    return value if isinstance(value, dict) else vars(value)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "conf").rglob("*.yaml")), ids=lambda p: p.relative_to(ROOT / "conf").as_posix()
)
def test_every_target_exists(path: Path) -> None:
    targets = [v for k, v in flatten(yaml.safe_load(path.read_text()) or {}).items() if k.split(".")[-1] == "_target_"]
    if path.parent.name in ("attention", "position"):
        assert len(targets) == 1
    for target in targets:
        assert parameters(target) is not None, target


@pytest.mark.parametrize("group", ["attention", "position"])
def test_a_yaml_names_every_hyperparameter(group: str) -> None:
    given = {
        "attention": {"num_heads", "head_dim", "layer", "seed"},
        "position": {"embed_dim", "num_heads", "head_dim", "num_layers", "seq_len"},
    }[group]
    for path in sorted((ROOT / "conf" / group).glob("*.yaml")):
        node = yaml.safe_load(path.read_text())
        assert set(node) - {"_target_", "name"} == set(parameters(node["_target_"])) - given, path
        check_node(group, node, ("name", *given))


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
