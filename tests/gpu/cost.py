"""What a training step will cost on a GPU, estimated without one: kernels, bytes moved, waits of the host, peak
memory, time.

    python -m tests.gpu.cost                                    # size=small, 32 x 512 tokens, padded; Markdown
    python -m tests.gpu.cost --batch 1 --length 16384 --where   # and where the bytes are moved
    python -m tests.gpu.cost --attention sdpa,reformer:num_hashes=4 --size base --mlm
    python -m tests.gpu.cost docs/gpu.md                        # makes the tables of a document anew

One forward and backward pass runs on PyTorch's meta device, whose tensors have shapes and no numbers, with autocast
emulated. So the code takes the way that it takes on a GPU, and every operation that would be a kernel is counted. An
operation of our own (`xcls::…`, Triton) counts as the kernels that it starts, each number it takes or gives moved once.
From bytes, products and launches follows the time on four cards, by assumed rates: +- 25 %, so read the ratios.
What this can't see: fusion by torch.compile, cache hits, the time of a badly shaped kernel.

In a document the tables stand between `<!-- cost: the arguments -->` and `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import collections
import functools
import itertools
import math
import re
import shlex
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from xcls.attention import base, kernels
from xcls.bench.table import markdown
from xcls.build import make_classifier, make_language_model
from xcls.config.schema import Config, Masking
from xcls.data.batching import ClassBatches, MaskedBatches, micro_batches
from xcls.data.encode import Encoded
from xcls.stages.finetune import classification_loss
from xcls.stages.pretrain import mlm_loss

ROOT = Path(__file__).resolve().parents[2]
MARK = re.compile(r"(<!-- cost: (.*?) -->\n).*?(<!-- end -->)", re.DOTALL)
VOCABULARY = 8192


class Kind(NamedTuple):
    """What decides which way the code takes on a card."""

    dtype: torch.dtype
    capability: tuple[int, int]  # as far as kernels ask for it: 8.0 has tensor cores that Triton uses
    memory: int  # bytes


class Card(NamedTuple):
    """What a card does, all of it assumed and meant as what code reaches, not as what a data sheet says."""

    bytes_per_s: float
    low_per_s: float  # operations of matrix products in 16 bits, a second
    full_per_s: float  # in fp32
    launch_s: float  # seconds to launch a kernel
    kind: Kind


NEW, OLD = Kind(torch.bfloat16, (8, 0), 80 * 2**30), Kind(torch.float16, (7, 0), 16 * 2**30)
CARDS = {
    "A100": Card(1.40e12, 170e12, 14e12, 7e-6, NEW),
    "H100": Card(2.60e12, 380e12, 40e12, 6e-6, NEW),
    "T4": Card(0.26e12, 22e12, 4.0e12, 9e-6, OLD),
    "V100": Card(0.78e12, 65e12, 11e12, 7e-6, OLD),
}
NO_KERNEL = set(
    "empty new_empty empty_like empty_strided new_empty_strided detach _unsafe_view alias set_ resize_ is_same_size"
    " view _local_scalar_dense sym_size lift_fresh _reshape_alias record_stream is_pinned".split()
)
# Kernels of one call, roughly.
SEVERAL = {"native_layer_norm_backward": 3, "embedding_dense_backward": 8, "nonzero": 4, "cumsum": 2, "sort": 6}
SEVERAL |= {"index_put_": 6, "index_put": 6, "_index_put_impl_": 6, "linalg_qr": 10, "_linalg_eigh": 20}
FILLS = set("copy_ fill_ masked_fill_ zero_ normal_ bernoulli_ random_".split())  # do not read what they write to
LEAST_KERNEL = 2e-6  # seconds on the card that any kernel takes
OPTIMIZER = 40  # launches of clipping and a fused AdamW, and bytes that they move for a weight


class Work(NamedTuple):
    """What an operation does: operations of matrix products, their dtype (None: that of the first tensor), kernels,
    and how often it moves what it takes and gives."""

    products: float = 0.0
    dtype: torch.dtype | None = None
    kernels: int = 1
    passes: int = 1


def favor_work(q: Tensor, k: Tensor, v: Tensor, directions: Tensor, *rest: Any) -> Work:
    """FAVOR+ in Triton. Forward two products for the exponents of q and of k, whose directions have two halves, and one
    for each of the means and the output; backward the exponents again, three for dq and the gradient of the means,
    three for dk and dv.
    """
    backward = len(rest) > 2
    return Work((10.0 if backward else 6.0) * 2 * q.numel() * len(directions), kernels=3 if backward else 4)


def lsh_work(qk: Tensor, v: Tensor, order: Tensor, count: Tensor | None, *rest: Any) -> Work:
    """LSH in Triton. Two products over all pairs forward; seven backward, where logits are computed twice again."""
    *tensors, chunk, before, after = rest
    rounds, chunks = order.shape[2], -(-qk.shape[2] // chunk)
    seen = sum(min(i + after, chunks - 1) - max(i - before, 0) + 1 for i in range(chunks))
    pairs = 2.0 * math.prod(qk.shape[:2]) * rounds * seen * chunk**2 * qk.shape[3]
    return Work((7 if tensors else 2) * pairs, kernels=rounds + (rounds > 1 and not tensors), passes=rounds)


# The operations of our own, by name in torch.ops.xcls: what they do with the arguments that they are called with.
WORK: dict[str, Callable[..., Work]] = {
    **dict.fromkeys(("split_heads", "merge_heads", "lsh_windows", "lsh_tokens"), lambda *_: Work()),
    **dict.fromkeys(("favor_forward", "favor_backward"), favor_work),
    **dict.fromkeys(("lsh_forward", "lsh_backward"), lsh_work),
}


class Op(NamedTuple):
    """One call of an operation."""

    name: str
    moved: int  # bytes
    products: float  # operations of matrix products
    dtype: torch.dtype | None
    kernels: int
    place: str


class Trace(NamedTuple):
    """One forward and backward pass."""

    ops: list[Op]
    waits: collections.Counter[str]
    peak: int  # bytes, with weights and the state of AdamW
    weights: int

    @property
    def kernels(self) -> int:
        """Launches of a training step."""
        return sum(op.kernels for op in self.ops) + OPTIMIZER

    def moved(self, place: str = "") -> int:
        """Bytes moved by what was called from files whose path begins with `place`."""
        return sum(op.moved for op in self.ops if op.place.startswith(place))

    def seconds(self, card: Card) -> float:
        """The step's time on a card: that of its kernels, or of the host, which launches them."""
        busy = OPTIMIZER * self.weights / card.bytes_per_s
        for op in self.ops:
            if op.name not in ("bernoulli_", "div_"):  # of a dropout that is three operations here and one on a card
                rate = card.full_per_s if op.dtype == torch.float32 else card.low_per_s
                busy += max(op.moved / card.bytes_per_s, op.products / rate, LEAST_KERNEL * op.kernels)
        return max(busy, self.kernels * card.launch_s)


# Functions by name, as CUDA's lists of autocast have them: in 16 bits, in fp32.
LOW = set("linear matmul bmm baddbmm einsum __matmul__ __rmatmul__ mm addmm".split())
HIGH = set(
    "softmax layer_norm cross_entropy nll_loss exp log logsumexp cumsum sum norm linalg_vector_norm reciprocal"
    " rsqrt".split()
)
FUSED = F.scaled_dot_product_attention


class Autocast(TorchFunctionMode):
    """torch.autocast as CUDA's lists have it, for the meta device, which has none; and the fused softmax attention."""

    def __init__(self, dtype: torch.dtype, meter: Meter) -> None:
        super().__init__()
        self.on, self.dtype, self.meter = True, dtype, meter
        self.cache: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.on and func.__name__ in LOW:
            args = tree_map(lambda x: self.cast(x, self.dtype), args)
        elif self.on and func.__name__ in HIGH:
            args = tree_map(lambda x: self.cast(x, torch.float32), args)
        return func(*args, **kwargs)

    def fused(self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **rest: Any) -> Tensor:
        """In place of `F.scaled_dot_product_attention`, also where a gradient of our own calls it, which no mode
        sees."""
        if attn_mask is not None and attn_mask.requires_grad:  # with such a mask PyTorch leaves its fused kernels
            return FUSED(q, k, v, attn_mask, **rest)
        q, k, v = (self.cast(x, self.dtype) if self.on else x for x in (q, k, v))
        return FusedAttention.apply(q, k, v, attn_mask, self.meter)

    def cast(self, x: Any, dtype: torch.dtype) -> Any:
        """x in `dtype`; the cast of a weight is kept, as autocast keeps it."""
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.dtype in (torch.float64, dtype):
            return x
        if dtype == torch.float32 or not (x.is_leaf and x.requires_grad):
            return x.to(dtype)
        if id(x) not in self.cache:
            self.cache[id(x)] = x.to(dtype)
        return self.cache[id(x)]

    @contextmanager
    def context(self, device: str, dtype: torch.dtype | None = None, enabled: bool = True, **rest: Any) -> Iterator:
        """In place of `torch.autocast`: on or off within a block."""
        before, self.on = self.on, enabled
        yield
        self.on = before


class FusedAttention(torch.autograd.Function):
    """F.scaled_dot_product_attention: one kernel forward and three backward, with the products at half of a card's
    rate."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, meter: Meter) -> Tensor:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        sums = q.new_empty(q.shape[:-1], dtype=torch.float32)
        ctx.meter = meter
        ctx.save_for_backward(q, k, v, mask, out, sums)
        meter.note("fused", [q, k, v, mask, out, sums], Work(8.0 * q.shape.numel() * k.shape[-2], q.dtype))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, *_ = ctx.saved_tensors
        grads = [torch.empty_like(x) for x in (q, k, v)]
        work = Work(20.0 * q.shape.numel() * k.shape[-2], q.dtype, kernels=3)
        ctx.meter.note("fused", [*ctx.saved_tensors, grad, *grads], work)
        return *grads, None, None


class Meter(TorchDispatchMode):
    """Counts kernels, bytes, products, waits and live memory. `chosen`: how many entries a `nonzero` finds."""

    def __init__(self, chosen: int) -> None:
        super().__init__()
        self.chosen, self.ops, self.waits = chosen, [], collections.Counter()
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.now = self.peak = 0

    def hold(self, tensor: Tensor) -> None:
        """Counts the memory of a tensor from now on."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self.live:
            self.live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
            self.now += storage.nbytes()

    def place(self) -> str:
        """file:function of the project that calls; "autograd" for a gradient that PyTorch computes by itself."""
        frame = sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_filename.startswith(f"{ROOT}/xcls/"):
                return f"{frame.f_code.co_filename.removeprefix(f'{ROOT}/')}:{frame.f_code.co_name}"
            frame = frame.f_back
        return "autograd"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        space, name = func._schema.name.split("::")
        if name == "_local_scalar_dense" and args[0].device.type == "meta":
            self.waits[self.place()] += 1
            return False if args[0].dtype == torch.bool else 1
        if name == "nonzero" and args[0].device.type == "meta":
            self.waits[self.place()] += 1
            out = args[0].new_empty((self.chosen, args[0].dim()), dtype=torch.int64)
        else:
            out = func(*args, **kwargs)
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        ins = [t for t in given if t.device.type == "meta"]
        outs = [t for t in tree_leaves(out) if isinstance(t, Tensor) and t.device.type == "meta"]
        if name in ("_to_copy", "copy_") and outs and any(t.device.type == "cpu" for t in given):
            self.waits[self.place()] += 1  # of memory that is not pinned, and nothing inside a model is
        for tensor in ins + outs:
            self.hold(tensor)
        self.peak = max(self.peak, self.now)
        for key in [key for key, (storage, _) in self.live.items() if storage.expired()]:
            self.now -= self.live.pop(key)[1]
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if not view and name not in NO_KERNEL and (ins or outs):
            self.ops.append(self.measured(space, name, args, kwargs, ins, outs))
        return out

    def note(self, name: str, tensors: list[Tensor | None], work: Work) -> None:
        """Counts an operation that moves each of these tensors once."""
        moved = sum(_bytes(tensor) for tensor in tensors if tensor is not None)
        self.ops.append(Op(name, moved, work.products, work.dtype, work.kernels, self.place()))

    def measured(self, space: str, name: str, args: Any, kwargs: Any, ins: list[Tensor], outs: list[Tensor]) -> Op:
        """What one operation costs."""
        filled = outs if name in FILLS else []
        moved = sum(map(_bytes, outs)) + sum(_bytes(t) for t in ins if not any(t is out for out in filled))
        if name in ("index_select", "embedding"):
            moved = 2 * _bytes(outs[0])
        work = Work(kernels=SEVERAL.get(name, 1))
        if space == "xcls":
            if name not in WORK:
                raise LookupError(f"xcls::{name}: say in WORK of {__file__} how many products it makes")
            work = WORK[name](*args)
            work = work._replace(dtype=work.dtype or ins[0].dtype)
        elif name in ("mm", "addmm", "bmm", "baddbmm"):
            one, other = ins[:2] if name in ("mm", "bmm") else ins[-2:]
            work = Work(2.0 * one.shape.numel() * other.shape[-1], one.dtype)
            if (
                name == "baddbmm" and kwargs.get("beta", 1) != 0
            ):  # the summand is copied first to where the product goes
                moved, work = moved + 2 * _bytes(outs[0]), work._replace(kernels=2)
        return Op(name, moved * work.passes, work.products, work.dtype, work.kernels, self.place())


def _bytes(tensor: Tensor) -> int:
    """Of what a kernel touches: an expanded dimension is read once."""
    entries = (size for size, stride in zip(tensor.shape, tensor.stride()) if stride)
    return math.prod(entries) * tensor.element_size()


@functools.cache
def configuration(attention: str, *words: str) -> Config:
    """The configuration of `python run.py attention=… words`; `reformer:num_hashes=4` changes a setting of the
    mechanism."""
    name, *changes = attention.split(":")
    overrides = [f"attention={name}", *(f"attention.{change}" for change in changes), *words]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        tree = OmegaConf.to_container(compose("config", overrides=overrides), resolve=True)
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), tree))


def batch_of(batch: int, length: int, mlm: bool, padded: bool) -> dict[str, Tensor | None]:
    """A batch as training makes it, on the CPU; if `padded`, the second text and all after it are shorter."""
    draws = np.random.default_rng(0)
    lengths = np.full(batch, length)
    lengths[1:] -= min(7, length - 1) if padded else 0
    lengths[0] -= 1 if padded and batch == 1 else 0
    encoded = Encoded(draws.integers(5, VOCABULARY, lengths.sum()).astype(np.int32), np.cumsum([0, *lengths]))
    if mlm:
        collator: Any = MaskedBatches(encoded=encoded, masking=Masking(), seed=0, vocab_size=VOCABULARY, static=length)
    else:
        collator = ClassBatches(encoded=encoded, labels=np.zeros(batch, np.int64), static=length)
    made = micro_batches(collator.build(np.arange(batch), 0), None, multiple=length)[0]
    if not padded:
        made["attention_mask"] = None
    return made


def model_of(config: Config, mlm: bool) -> Any:
    """The model that is trained: of masked language modelling, or a classifier of two classes."""
    if mlm:
        return make_language_model(config, vocab_size=VOCABULARY)
    return make_classifier(config, vocab_size=VOCABULARY, classes=["a", "b"])


class Case(NamedTuple):
    """What is trained; `words` choose size, position and the like, as on the command line."""

    attention: str
    batch: int = 32
    length: int = 512
    mlm: bool = False
    padded: bool = True
    words: tuple[str, ...] = ("size=small",)


def trace(case: Case, card: str) -> Trace:
    """One forward and backward pass as on a card, which is made once for all cards that it is the same on.

    Raises LookupError for an operation of our own that WORK does not know.
    """
    return _trace(case, CARDS[card].kind)


@functools.cache
def _trace(case: Case, kind: Kind) -> Trace:
    attention, batch, length, mlm, padded, words = case
    torch.manual_seed(0)
    config = configuration(attention, f"seq_len={length}", *words)
    with mock.patch("xcls.model.encoder.initialise"):  # whose numbers nobody reads
        model = model_of(config, mlm)
    _forget_numbers(model)
    batches = {name: x if x is None else x.to("meta") for name, x in batch_of(batch, length, mlm, padded).items()}
    weights = sum(p.numel() for p in model.parameters())
    meter = Meter(chosen=int(0.15 * batch * length))
    for parameter in model.parameters():
        meter.hold(parameter)
    meter.now += 8 * weights  # the two moments of AdamW
    autocast = Autocast(kind.dtype, meter)
    with (
        mock.patch.object(torch, "autocast", autocast.context),
        mock.patch.object(kernels, "assumed_capability", kind.capability),
        mock.patch.object(F, "scaled_dot_product_attention", autocast.fused),
        mock.patch.object(base, "memory_of", lambda device: kind.memory),
        meter,
        autocast,
    ):
        loss = (mlm_loss if mlm else classification_loss)(model, batches)
        autocast.on = False
        autocast.cache.clear()
        loss.backward()
    return Trace(meter.ops, meter.waits, meter.peak, weights)


def _forget_numbers(model: torch.nn.Module) -> None:
    """Puts weights and buffers on the meta device."""
    for module in model.modules():
        for table, wrap in ((module._parameters, torch.nn.Parameter), (module._buffers, lambda tensor: tensor)):
            for key, value in list(table.items()):
                if value is not None:
                    empty = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
                    table[key] = wrap(empty)


def table(arguments: argparse.Namespace) -> str:
    """The estimates as Markdown: a row for each mechanism and kind of card, beside the first mechanism."""
    rows, places = [], []
    words = (f"size={arguments.size}", f"position={arguments.position}", *arguments.words.split())
    names = arguments.attention.split(",")
    for kind, name in itertools.product((NEW, OLD), names):
        cases = [
            Case(each, arguments.batch, arguments.length, arguments.mlm, not arguments.unpadded, words)
            for each in (name, names[0])
        ]
        traced, first = (_trace(case, kind) for case in cases)
        row = {
            "mechanism": name,
            "dtype": str(kind.dtype)[6:],
            "kernels": f"{traced.kernels:,}",
            "GB moved": f"{traced.moved() / 1e9:.1f}",
            "waits": str(traced.waits.total()),
            "peak, MiB": f"{traced.peak / 2**20:,.0f}",
            "memory ×": f"{traced.peak / first.peak:.2f}",
        }
        for key, card in CARDS.items():
            seconds, least = traced.seconds(card), first.seconds(card)
            row[f"{key}, ms (×)"] = f"{1e3 * seconds:.1f} ({seconds / least:.2f})" if card.kind == kind else "–"
        rows.append(row)
        places += [f"\n{name}, {row['dtype']}:", *_where(traced)] if arguments.where else []
    return "\n".join([markdown(rows), *places])


def _where(traced: Trace) -> Iterator[str]:
    """The places that move most, and those that wait."""
    moved: collections.Counter[str] = collections.Counter()
    for op in traced.ops:
        moved[op.place] += op.moved
    yield from (f"{count / 1e9:8.2f} GB  {place}" for place, count in moved.most_common(14))
    yield from (f"{count} waits  {place}" for place, count in traced.waits.items())


def parsed(words: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu.cost", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("documents", nargs="*", help="Markdown files whose tables are made anew; none: print one table")
    for key, default, told in (
        ("attention", "sdpa,sdpa_fused,performer,reformer", "mechanisms; the first is the reference"),
        ("position", "rope", "position encoding"),
        ("size", "small", "of conf/size"),
        ("batch", 32, "sequences"),
        ("length", 512, "tokens of a sequence"),
        ("words", "", 'more of the command line of run.py: "size.width=256 size.num_layers=2"'),
    ):
        parser.add_argument(f"--{key}", type=type(default), default=default, help=told)
    parser.add_argument("--mlm", action="store_true", help="masked language modelling instead of classification")
    parser.add_argument("--unpadded", action="store_true", help="all texts are as long")
    parser.add_argument("--where", action="store_true", help="where the bytes are moved, file:function")
    return parser.parse_args(words)


def refresh(text: str) -> str:
    """A document with its tables made anew."""
    return MARK.sub(lambda found: f"{found[1]}{table(parsed(shlex.split(found[2])))}\n{found[3]}", text)


def main(words: list[str]) -> None:
    """The command."""
    arguments = parsed(words)
    torch.set_num_threads(1)
    if not arguments.documents:
        print(table(arguments))
    for name in arguments.documents:
        path = Path(name)
        path.write_text(refresh(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
