"""Formulas against PyTorch's counter, errors against known ones, trials that leave nothing behind."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Callable

import pytest
import torch
import yaml
from torch import nn
from torch.testing import assert_close

from tests.pairwise import spread
from xcls.attention.base import Attention
from xcls.attention.lsh import Reformer
from xcls.bench.cases import Case, build, work_of
from xcls.bench.error import attend, errors_of, exact, measure_error, random_inputs, relative_error
from xcls.bench.machine import card_peak, counted
from xcls.bench.measure import measure_memory, measure_time
from xcls.bench.trained import Exact, layer_errors, layers_of, trained_layers
from xcls.build import make_classifier
from xcls.config.schema import Config, Size, UserError, flatten
from xcls.data.tokenizer import ByteTokenizer
from xcls.model.encoder import Encoder
from xcls.position.rope import Rotary
from xcls.train.checkpoint import write_checkpoint

CONF = Path(__file__).resolve().parents[2] / "conf" / "attention"
SDPA = {"_target_": "xcls.attention.softmax.Sdpa", "name": "sdpa"}
FUSED = {"_target_": "xcls.attention.softmax.SdpaFused"}
PERFORMER = {"_target_": "xcls.attention.favor.Performer", "num_features": 16}
BROKEN = {"_target_": "xcls.attention.favor.Performer", "num_features": -1}
NONE = {"_target_": "xcls.position.none.NoPosition"}


def case(node: dict[str, Any], part: str, **changes: Any) -> Case:
    sizes: dict[str, Any] = {"seq_len": 16, "batch": 2, "width": 16, "num_heads": 2, "num_layers": 1}
    made = Case("it", "xcls", part, node, "none", NONE, dtype="fp32", device="cpu", **sizes)
    return replace(made, **changes)


class Silent:
    """A connection whose other end does not listen."""

    def send(self, message: Any) -> None:
        """Nothing."""


@pytest.mark.parametrize(
    ("path", "length", "part"), spread(sorted(CONF.glob("*.yaml")), [64, 300, 1024], ["core", "module"])
)
def test_every_mechanism_has_a_formula_that_agrees_with_the_counter(path: Path, length: int, part: str) -> None:
    trial = build(case(yaml.safe_load(path.read_text()), part, seq_len=length, width=128))
    found = work_of(trial.case, trial.attention)
    assert counted(trial.forward) == pytest.approx(found["inference"].flops, rel=0.03)
    assert counted(trial.training) == pytest.approx(found["training"].flops, rel=0.03)
    assert 0 < found["inference"].bytes <= found["training"].bytes


@pytest.mark.parametrize(
    "target", ["lsh.Reformer", "lsh_local.ReformerLocal", "lsh_learned.ReformerLearned", "smyrf.Smyrf"]
)
def test_formulas_of_sorted_chunks_count_every_round(target: str) -> None:
    node = {"_target_": f"xcls.attention.{target}", "num_hashes": 3, "bucket_size": 4}
    trial = build(case(node, "core", seq_len=18))
    found = work_of(trial.case, trial.attention)
    assert counted(trial.forward) == found["inference"].flops
    assert counted(trial.training) == found["training"].flops


def test_no_formula_is_no_work() -> None:
    class Own(Attention):
        """A mechanism without a formula."""

    assert work_of(case(SDPA, "core"), Own(num_heads=2, head_dim=8, layer=0, seed=0)) == {}
    step = build(case(SDPA, "step"))
    assert work_of(step.case, step.attention) == {}


@pytest.mark.parametrize(
    ("name", "dtype", "tflops"),
    [
        ("Tesla T4", "fp16", 65.0),
        ("Tesla T4", "bf16", None),
        ("Tesla V100-SXM2-16GB", "fp16", 125.0),
        ("NVIDIA A100-SXM4-40GB", "bf16", 312.0),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16", None),
        ("NVIDIA A100-SXM4-40GB", "fp32", None),
        ("NVIDIA L40S", "bf16", None),
        ("NVIDIA H100 PCIe", "bf16", 756.0),
        ("NVIDIA H200 NVL", "bf16", 836.0),
        (None, "bf16", None),
    ],
)
def test_peaks_of_known_cards(name: str | None, dtype: str, tflops: float | None) -> None:
    assert card_peak(name, dtype) == (None if tflops is None else tflops * 1e12)


@pytest.mark.parametrize(("part", "dtype"), [("core", "bf16"), ("module", "fp32"), ("step", "fp32"), ("step", "bf16")])
def test_a_trial_leaves_no_gradient_behind(part: str, dtype: str) -> None:
    trial = build(case(PERFORMER, part, dtype=dtype))
    before = [p.detach().clone() for p in trial.model.parameters()]
    for measure in ("inference", "forward", "training"):
        trial.prepare(measure)
        getattr(trial, measure)()
        assert trial.model.training == (measure != "inference")
    assert all(p.grad is None for p in (*trial.model.parameters(), *trial.leaves))
    moved = any(not torch.equal(p, old) for p, old in zip(trial.model.parameters(), before))
    assert moved == (part == "step")


def test_every_mechanism_gets_the_same_inputs() -> None:
    first, second = (build(case(node, "core")).leaves for node in (SDPA, FUSED))
    assert all(torch.equal(a, b) for a, b in zip(first, second)) and len(first) == len(second) == 3


def test_cases_are_timed_by_turns_and_one_that_fails_has_a_cause() -> None:
    cases = [case(SDPA, "module"), case(BROKEN, "module"), case(PERFORMER, "core")]
    limits: dict[str, Any] = {"rounds": 3, "least_rounds": 3, "seconds": 60.0, "brief": False}
    sdpa, broken, performer = measure_time(Silent(), cases=cases, **limits)
    assert sdpa["rounds"] == 3 and 0 < sdpa["training_min_ms"] <= sdpa["training_ms"] <= sdpa["training_max_ms"]
    assert sdpa["training_flops"] == sdpa["training_flops_counted"] and sdpa["path"] == "whole"
    assert "num_features" in broken["cause"] and "training_ms" not in broken and performer["inference_ms"] > 0


def test_a_brief_bench_measures_training_alone() -> None:
    one = case(SDPA, "step")
    (row,) = measure_time(Silent(), cases=[one], rounds=3, least_rounds=3, seconds=60.0, brief=True)
    assert row["training_ms"] > 0 and not {"inference_ms", "training_flops_counted"} & set(row)
    assert measure_memory(Silent(), case=one, brief=True).keys() == {"training_MiB"}


def test_exact_attention_is_softmax_attention() -> None:
    q, k, v = random_inputs((1, 2, 700, 8), 0, dtype=torch.float32, device="cpu")  # more rows than one block
    assert_close(exact(q, k, v), nn.functional.scaled_dot_product_attention(q, k, v))
    assert relative_error(2 * v, v) == pytest.approx(1.0)


def test_shared_exact_attention_is_lsh_whose_chunks_cover_everything() -> None:
    q, k, v = random_inputs((1, 2, 12, 8), 1, dtype=torch.float32, device="cpu")
    attention = Reformer(num_heads=2, head_dim=8, layer=0, seed=0, bucket_size=16)
    assert_close(attend(attention, q, k, v), exact(q, k, v, shared=True), rtol=1e-4, atol=1e-5)


def test_errors_are_against_what_each_approximates() -> None:
    lsh = {"_target_": "xcls.attention.lsh.Reformer", "bucket_size": 16}
    one, two, broken = measure_error(Silent(), cases=[case(SDPA, "core"), case(lsh, "core"), case(BROKEN, "core")])
    assert one["error_mean"] < 1e-5 and one["error_reference"] == "softmax" and one["error_draws"] == 5
    assert two["error_mean"] < 1e-4 and two["error_reference"] == "shared-QK softmax" and broken == {}


def test_the_mean_of_the_values_is_the_yardstick_of_an_error() -> None:
    v = torch.randn(1, 2, 8, 4)
    mean = v.mean(dim=2, keepdim=True).expand_as(v)
    assert errors_of(v, mean, v) == (pytest.approx(relative_error(v, mean)), 0.0)
    assert errors_of(v, v, v)[0] == 0.0 < errors_of(v, v, v)[1]


def test_the_layers_of_a_trained_run_attend_as_in_the_run(tmp_path: Path) -> None:
    words = ["good film ", "bad film ", "a book ", "no book "]
    rows = "\n".join(f"{word * 9},{number % 2}" for number, word in enumerate(words))
    (tmp_path / "texts.csv").write_text("text,label\n" + rows + "\n")
    relative = {"_target_": "xcls.position.relative.Relative", "name": "relative", "window": 4}
    size = Size(num_layers=2, width=16, num_heads=2, feed_forward=32)
    config = Config(seq_len=32, attention=SDPA, position=relative, size=size)
    config.dataset.path, config.dataset.source = str(tmp_path / "texts.csv"), {"_target_": "xcls.data.files.Files"}
    torch.manual_seed(0)
    model = make_classifier(config, vocab_size=300, classes=["0", "1"]).state_dict()
    payload = {"model": model, "config": flatten(asdict(config)), "tokenizer": ByteTokenizer().to_json()}
    write_checkpoint(tmp_path / "ckpt_last.pt", payload)
    layers, found = trained_layers(tmp_path, "cpu")
    assert found["size"]["width"] == 16 and [layer.x.shape[1:] for layer in layers] == [(32, 16)] * 2
    row = layer_errors(SDPA, layers)
    assert row["error_mean"] < 1e-4 and row["error_draws"] == 2 and not torch.equal(layers[0].x, layers[1].x)
    with pytest.raises(ValueError, match="ties q and k"):
        layer_errors({"_target_": "xcls.attention.lsh.Reformer"}, layers)


def test_a_checkpoint_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="bench.trained"):
        trained_layers(tmp_path, "cpu")


def encoder_with(make_attention: Callable[[int], Attention]) -> Encoder:
    """Two layers with rotary positions."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"embed_dim": 16, "num_heads": 2, "num_layers": 2, "seq_len": 48}
    more: dict[str, Any] = {"vocab_size": 20, "feed_forward": 16, "norm": "pre", "activation": "gelu", "dropout": 0.0}
    return Encoder(position=Rotary(**sizes, head_dim=8), make_attention=make_attention, **more, **sizes).eval()


def reformer(layer: int, kind: type[Reformer] = Reformer, **changes: Any) -> Reformer:
    """LSH attention with chunks of four tokens, in eight buckets at least."""
    return kind(num_heads=2, head_dim=8, layer=layer, seed=0, **{"bucket_size": 4, **changes})


@pytest.mark.parametrize("hash_rotated", [False, True])
def test_a_mechanism_gives_what_it_would_give_in_the_run(hash_rotated: bool) -> None:
    """The layers of a run with LSH that hashes the same way: its own outputs; then the exact ones."""
    encoder = encoder_with(lambda layer: reformer(layer, hash_rotated=hash_rotated))
    own: list[Any] = []
    block: Any = encoder.blocks[0]
    hook = block.attention.attention.register_forward_hook(lambda module, inputs, out: own.append((inputs, out)))
    layer, _ = layers_of(encoder, torch.randint(5, 20, (1, 48)))
    hook.remove()
    (q, _, v, _), out = own[0]
    found, values = layer.attend(reformer(0, hash_rotated=hash_rotated), {})
    assert_close((found, values), (out, v))
    turned = q if hash_rotated else encoder.position.rotation(48, q.device)(q)
    whole = exact(turned, turned, v, shared=True)
    assert_close(layer.attend(Exact(like=reformer(0)), {})[0], whole)
    assert not torch.equal(found, layer.attend(reformer(0, hash_rotated=not hash_rotated), {})[0])


def test_layers_share_what_they_share_in_a_run() -> None:
    layers = layers_of(encoder_with(reformer), torch.randint(5, 20, (1, 48)))
    node = {"_target_": "xcls.attention.lsh_shared.ReformerShared", "bucket_size": 4}
    shared = layer_errors(node, layers)["error_by_layer"].split()
    plain = layer_errors({**node, "_target_": "xcls.attention.lsh.Reformer"}, layers)["error_by_layer"].split()
    assert shared[0] == plain[0] and shared[1] != plain[1]
