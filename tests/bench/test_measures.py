"""Formulas against PyTorch's counter, errors against known ones, trials that leave nothing behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import pytest
import torch
import yaml
from torch import nn
from torch.testing import assert_close

from tests.attention.oracles import lsh_buckets, lsh_over
from tests.pairwise import spread
from xcls.attention.base import Attention, Masks
from xcls.attention.favor import Performer
from xcls.attention.lsh import Reformer
from xcls.attention.lsh_learned import ReformerLearned
from xcls.attention.lsh_local import ReformerLocal
from xcls.attention.lsh_shared import ReformerShared
from xcls.attention.smyrf import Smyrf
from xcls.attention.softmax import Sdpa
from xcls.attention.work import Shape, Work
from xcls.bench.cases import Case, build
from xcls.bench.error import attend, errors_of, exact, random_inputs, relative_error
from xcls.bench.formulas import work
from xcls.bench.machine import copy_rate, counted, matmul_rate
from xcls.bench.trained import catch, load_encoder, trained_inputs
from xcls.bench.worker import layer_errors
from xcls.config.schema import UserError
from xcls.model.encoder import Encoder
from xcls.position.rope import Rotary
from xcls.train.checkpoint import write_checkpoint

CONF = Path(__file__).resolve().parents[2] / "conf" / "attention"
NODES = {
    "sdpa": {"_target_": "xcls.attention.softmax.Sdpa"},
    "sdpa_fused": {"_target_": "xcls.attention.softmax.SdpaFused"},
    "performer": {"_target_": "xcls.attention.favor.Performer", "num_features": 16},
}
NONE = {"_target_": "xcls.position.none.NoPosition"}


def case(name: str, part: str, **changes: Any) -> Case:
    values = {
        "mechanism": name,
        "origin": "xcls",
        "part": part,
        "node": NODES[name],
        "position": "none",
        "position_node": NONE,
        "seq_len": 16,
        "batch": 2,
        "dtype": "fp32",
        "device": "cpu",
        "width": 16,
        "num_heads": 2,
        "num_layers": 1,
    }
    return Case(**{**values, **changes})


@pytest.mark.parametrize("part", ["core", "module"])
@pytest.mark.parametrize("name", list(NODES))
def test_formulas_agree_with_the_counter(name: str, part: str) -> None:
    trial = build(case(name, part))
    found = work(part, trial.attention, Shape(batch=2, heads=2, length=16, head_dim=8, itemsize=4))
    assert counted(trial.forward) == found["inference"].flops
    assert counted(trial.training) == found["training"].flops


@pytest.mark.parametrize(
    ("path", "length", "part"), spread(sorted(CONF.glob("*.yaml")), [64, 300, 1024], ["core", "module"])
)
def test_every_mechanism_has_a_formula_that_agrees_with_the_counter(path: Path, length: int, part: str) -> None:
    node = yaml.safe_load(path.read_text())
    trial = build(case("sdpa", part, node=node, seq_len=length, width=128))
    found = work(part, trial.attention, Shape(batch=2, heads=2, length=length, head_dim=64, itemsize=4))
    assert counted(trial.forward) == pytest.approx(found["inference"].flops, rel=0.03)
    assert counted(trial.training) == pytest.approx(found["training"].flops, rel=0.03)
    assert 0 < found["inference"].bytes <= found["training"].bytes


@pytest.mark.parametrize("kind", [Reformer, ReformerLocal, ReformerLearned, Smyrf])
def test_formulas_of_clusters_count_every_round(kind: type) -> None:
    attention = kind(num_heads=2, head_dim=8, layer=0, seed=0, num_hashes=3, bucket_size=4)
    x = torch.randn(2, 2, 18, 8, requires_grad=True)
    found = work("core", attention, Shape(batch=2, heads=2, length=18, head_dim=8, itemsize=4))
    assert counted(lambda: attention(x, x, x)) == found["inference"].flops
    assert counted(lambda: attention(x, x, x).sum().backward()) == found["training"].flops


def test_lsh_counts_products_of_whole_chunks_beside_hashing() -> None:
    attention = Reformer(num_heads=2, head_dim=8, layer=0, seed=0, num_hashes=3, bucket_size=4)
    found = work("core", attention, Shape(batch=2, heads=2, length=16, head_dim=8, itemsize=4))
    vectors = 2 * 2 * 16 * 8
    slots = 2 * (2 * 4 + 1) * 4  # four chunks of each head, and a spare one behind each example
    hashing, product = 2 * 3 * vectors * 2, 2 * 3 * slots * 8 * 8  # 4 buckets: 2 columns; a window of 2 chunks of 4
    assert found["inference"].flops == hashing + 2 * product
    assert found["training"].flops == hashing + 7 * product  # the logits are computed again


def test_no_formula_is_no_count() -> None:
    shape = Shape(batch=1, heads=2, length=8, head_dim=4, itemsize=4)
    assert (
        work("core", nn.Identity(), shape) == {} == work("step", Sdpa(num_heads=2, head_dim=4, layer=0, seed=0), shape)
    )


def test_the_bound_is_the_slower_of_arithmetic_and_memory() -> None:
    assert Work(10.0, 1.0).bound(2.0, 1.0) == 5.0 and Work(1.0, 10.0).bound(2.0, 1.0) == 10.0


def test_rates_of_the_machine_are_those_of_real_work() -> None:
    assert 1e6 < matmul_rate("fp32", "cpu", seconds=0.01, side=64) < 1e16
    assert 1e6 < copy_rate("cpu", seconds=0.01, size=2**16) < 1e14


@pytest.mark.parametrize("part", ["core", "module", "step"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_trial_leaves_no_gradient_behind(part: str, dtype: str) -> None:
    trial = build(case("performer", part, dtype=dtype))
    before = [p.detach().clone() for p in trial.model.parameters()]
    for measure in ("inference", "forward", "training"):
        trial.prepare(measure)
        getattr(trial, measure)()
        assert trial.model.training == (measure != "inference")
    assert all(p.grad is None for p in trial.model.parameters())
    moved = any(not torch.equal(p, old) for p, old in zip(trial.model.parameters(), before))
    assert moved == (part == "step")


def test_every_mechanism_gets_the_same_inputs() -> None:
    first, second = (build(case(name, "core")).leaves for name in ("sdpa", "sdpa_fused"))
    assert all(torch.equal(a, b) for a, b in zip(first, second)) and len(first) == len(second)


def test_exact_attention_is_softmax_attention() -> None:
    q, k, v = random_inputs((1, 2, 700, 8), 0, dtype=torch.float32, device="cpu")  # more rows than one block
    assert_close(exact(q, k, v), nn.functional.scaled_dot_product_attention(q, k, v))
    assert relative_error(2 * v, v) == pytest.approx(1.0)


def test_shared_exact_attention_is_lsh_whose_chunks_cover_everything() -> None:
    q, k, v = random_inputs((1, 2, 12, 8), 1, dtype=torch.float32, device="cpu")
    attention = Reformer(num_heads=2, head_dim=8, layer=0, seed=0, bucket_size=16)
    assert_close(attend(attention, q, k, v, Masks()), exact(q, k, v, shared=True), rtol=1e-4, atol=1e-5)


def test_more_features_have_a_smaller_error() -> None:
    q, k, v = random_inputs((1, 2, 64, 8), 0, dtype=torch.float32, device="cpu")
    q, k = 0.5 * q, 0.5 * k  # at the full scale the features' variance, exp(|q + k|^2), hides the trend
    errors = [
        relative_error(
            attend(Performer(num_heads=2, head_dim=8, layer=0, seed=0, num_features=m), q, k, v, Masks()),
            exact(q, k, v),
        )
        for m in (16, 4096)
    ]
    assert errors[1] < 0.5 * errors[0]


@pytest.fixture
def trained_run(tmp_path: Path) -> Path:
    """A run's checkpoint: one layer with relative positions, and a data set of four texts."""
    from xcls.data.tokenizer import ByteTokenizer
    from xcls.position.relative import Relative

    csv = tmp_path / "texts.csv"
    rows = "\n".join(
        f"{word * 9},{number % 2}" for number, word in enumerate(["good film ", "bad film ", "a book ", "no book "])
    )
    csv.write_text("text,label\n" + rows + "\n")
    config = {
        "seed": 0,
        "seq_len": 32,
        "attention._target_": "xcls.attention.softmax.Sdpa",
        "attention.name": "sdpa",
        "position._target_": "xcls.position.relative.Relative",
        "position.name": "relative",
        "position.window": 4,
        "size.num_layers": 2,
        "size.width": 16,
        "size.num_heads": 2,
        "size.feed_forward": 32,
        "size.norm": "pre",
        "size.activation": "gelu",
        "size.dropout": 0.1,
        "dataset.source._target_": f"{__name__}.Texts",
        "dataset.path": str(csv),
        "dataset.text": "text",
        "dataset.label": "label",
    }
    torch.manual_seed(0)
    sizes = {"embed_dim": 16, "num_heads": 2, "head_dim": 8, "num_layers": 2, "seq_len": 32}
    tokenizer = ByteTokenizer()
    encoder = Encoder(
        vocab_size=300,
        seq_len=32,
        num_layers=2,
        embed_dim=16,
        num_heads=2,
        feed_forward=32,
        norm="pre",
        activation="gelu",
        dropout=0.1,
        position=Relative(**sizes, window=4),
        make_attention=lambda layer: Sdpa(num_heads=2, head_dim=8, layer=layer, seed=0),
    )
    model = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    write_checkpoint(tmp_path / "ckpt_last.pt", {"model": model, "config": config, "tokenizer": tokenizer.to_json()})
    return tmp_path


class Texts:
    """A source with the rows of a CSV file."""

    def __init__(self, *, path: str, text: str, label: str) -> None:
        self.lines = Path(path).read_text().splitlines()[1:]

    def load(self) -> Any:
        from types import SimpleNamespace

        class Rows(list):
            def __getitem__(self, which: slice) -> dict[str, list[str]]:
                return {"text": [line.split(",")[0] for line in self.__iter__()][which]}

        return SimpleNamespace(train=Rows(self.lines))


def test_trained_queries_and_keys_are_those_of_the_layers(trained_run: Path) -> None:
    layers, config = trained_inputs(trained_run, "cpu")
    assert config["size"]["width"] == 16
    assert [tuple(layer.q.shape) for layer in layers] == [(4, 2, 32, 8)] * 2
    attention = Sdpa(num_heads=2, head_dim=8, layer=0, seed=0)
    for layer in layers:
        out = attend(attention, layer.q, layer.k, layer.v, Masks(bias=layer.bias))
        assert_close(out, exact(layer.q, layer.k, layer.v, bias=layer.bias), rtol=1e-4, atol=1e-5)
    assert not torch.equal(layers[0].q, layers[1].q)


def encoder_with(make_attention: Callable[[int], Attention]) -> Encoder:
    """Two layers with rotary positions."""
    torch.manual_seed(0)
    sizes = {"embed_dim": 16, "num_heads": 2, "num_layers": 2, "seq_len": 48}
    return Encoder(
        vocab_size=20,
        feed_forward=16,
        norm="pre",
        activation="gelu",
        dropout=0.0,
        position=Rotary(**sizes, head_dim=8),
        make_attention=make_attention,
        **sizes,
    ).eval()


def reformer(layer: int, kind: type = Reformer, **changes: Any) -> Reformer:
    """LSH attention with chunks of four tokens, in eight buckets at least."""
    return kind(num_heads=2, head_dim=8, layer=layer, seed=0, **{"bucket_size": 4, **changes})


@pytest.mark.parametrize("run_hashes_rotated", [False, True])
@pytest.mark.parametrize("hash_rotated", [False, True])
def test_a_mechanism_gets_what_it_would_get_in_the_run(run_hashes_rotated: bool, hash_rotated: bool) -> None:
    encoder = encoder_with(lambda layer: reformer(layer, hash_rotated=run_hashes_rotated))
    attention, given = encoder.blocks[0].attention, []
    hook = attention.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    layer, _ = catch(encoder, torch.randint(5, 20, (1, 48)))
    hook.remove()
    q, v = (part(given[0]).unflatten(2, (2, -1)).transpose(1, 2) for part in (attention.q_proj, attention.v_proj))
    rotate = encoder.position.rotation(48, q.device)
    assert layer.tied
    torch.testing.assert_close(layer.q, q)
    torch.testing.assert_close(layer.rotated()[0], rotate(q))
    measured = reformer(0, hash_rotated=hash_rotated)
    q_given, k_given, masks = layer.given(measured)
    torch.testing.assert_close((q_given, k_given), (rotate(q), rotate(q)) if hash_rotated else (q, q))
    assert (masks.rotate is None) == hash_rotated
    turned = rotate(q)
    buckets = lsh_buckets(turned if hash_rotated else q, measured.rotations, 4, None)
    expected = lsh_over(turned, v, buckets, Masks(), chunk=4, before=1, after=0)
    torch.testing.assert_close(attend(measured, q_given, k_given, v, masks), expected)
    swapped = lsh_buckets(q if hash_rotated else turned, measured.rotations, 4, None)
    assert not torch.equal(buckets, swapped), "the order of hashing and rotating makes no difference here"


def test_layers_share_what_they_share_in_a_run() -> None:
    layers = catch(encoder_with(reformer), torch.randint(5, 20, (1, 48)))
    node = {"_target_": "xcls.attention.lsh_shared.ReformerShared", "bucket_size": 4}
    errors, against = layer_errors(node, layers)
    context: dict[str, Any] = {}
    for (error, _), layer in zip(errors, layers):
        q, k, masks = layer.given(reformer(layer.layer))
        out = attend(reformer(layer.layer, ReformerShared), q, k, layer.v, masks.with_(context=context))
        assert error == relative_error(out, exact(*layer.rotated(), layer.v, shared=True))
    plain, _ = layer_errors({**node, "_target_": "xcls.attention.lsh.Reformer"}, layers)
    assert against == "shared-QK softmax" and errors[0] == plain[0] and errors[1] != plain[1]


def test_a_checkpoint_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint of a run"):
        trained_inputs(tmp_path, "cpu")
    with pytest.raises(KeyError):
        load_encoder({"config": {}})


def test_the_mean_of_the_values_is_the_yardstick_of_an_error() -> None:
    v = torch.randn(1, 2, 8, 4)
    mean = v.mean(dim=2, keepdim=True).expand_as(v)
    assert errors_of(v, mean, v) == (pytest.approx(relative_error(v, mean)), 0.0)
    assert errors_of(v, v, v)[0] == 0.0 < errors_of(v, v, v)[1]
