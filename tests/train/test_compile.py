"""torch.compile by config: the same numbers, the same names, its time set aside."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from tests.samples import ATTENTIONS, CPU, make_batch, make_encoded, make_encoder, make_mlm
from xcls.config.schema import Hardware, Masking
from xcls.data.batching import MaskedBatches, chosen_rows
from xcls.model.dropout import drawn_whole
from xcls.stages.pretrain import mlm_loss
from xcls.train.amp import Amp, compile_blocks
from xcls.train.cost import compiled_graphs
from xcls.train.stream import COMPILED_WIDTHS, Stream, batches_from, on_device, width_multiple

pytestmark = pytest.mark.slow


@pytest.mark.slow
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_compiled_blocks_compute_the_same(attention: str) -> None:
    torch._dynamo.reset()
    rate = 0.0 if drawn_whole is None else 0.1  # the same draws in both
    plain, compiled = make_mlm(attention, dropout=rate), make_mlm(attention, dropout=rate)
    compile_blocks(compiled)
    graphs = compiled_graphs()
    for lengths in ([9, 12], [15, 7]):
        ids, mask = make_batch(lengths)
        found = []
        for model in (plain, compiled):
            model.zero_grad()
            torch.manual_seed(7)
            loss = model(ids, mask, *chosen_rows(torch.where(mask, ids, -100)))
            loss.backward()
            found.append((loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}))
        assert_close(found[0], found[1], atol=1e-4, rtol=1e-3)
    assert compiled_graphs() > graphs
    assert list(compiled.state_dict()) == list(plain.state_dict())
    assert len(make_encoder(attention).blocks) == 2


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_mechanism_compiles_for_a_handful_of_widths(attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two graphs for each shape of batch, the last layer's and that of the others; none is left to the interpreter."""
    import torch._dynamo as dynamo

    dynamo.reset()
    dynamo.utils.counters.clear()
    block_compile = torch.nn.Module.compile  # what the backend would make of a graph does not matter here
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: block_compile(self, backend="aot_eager", **how))
    longest, hardware = 128, Hardware(device="cpu", dtype="fp32", compile=True)
    encoded, _ = make_encoded(64, seed=0, longest=longest)
    collator = MaskedBatches(encoded, Masking(), seed=0, vocab_size=40, multiple=width_multiple(longest, compiled=True))
    stream = Stream(collator=collator, batch_size=4, seed=0, group_by_length=True)
    amp, model = Amp(precision=CPU, hardware=hardware), make_mlm(attention, seq_len=longest)
    compile_blocks(model)
    shapes = set()
    for batch in batches_from(stream, step=0, total=20, workers=0):
        for micro in on_device(batch, None, amp):
            mlm_loss(model, micro).backward()
            shapes.add((micro["input_ids"].shape[1], micro["attention_mask"] is None))
    assert 2 < len({width for width, _ in shapes}) <= COMPILED_WIDTHS
    assert dynamo.utils.counters["frames"]["total"] == dynamo.utils.counters["frames"]["ok"]
    assert not dynamo.utils.counters["graph_break"]
    assert compiled_graphs() == 2 * len(shapes)
