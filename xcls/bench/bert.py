"""The training that the bench compares with: a BERT of our size, trained by the Trainer of transformers.

Letters: B batch, N tokens.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, Sequence

import torch
from tokenizers import Tokenizer, models
from torch import nn

from xcls.bench.plan import Contender
from xcls.bench.training import ENDLESS, Meter
from xcls.data.encode import Encoded, encode_cached
from xcls.data.splits import Prepared
from xcls.data.tokenizer import TextTokenizer

MODELS = {"finetune": "BertForSequenceClassification", "pretrain": "BertForMaskedLM"}
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def make_rows(encoded: Encoded, labels: Sequence[int] | None) -> list[dict[str, Any]]:
    """Documents as lists of token ids in memory, which is faster for the Trainer than a table on disk.

    Each has a label or, for MLM (labels None), a special_tokens_mask.
    """
    rows = []
    for number in range(len(encoded)):
        ids = encoded[number].tolist()
        special = [int(token < len(SPECIAL)) for token in ids]
        more = {"special_tokens_mask": special} if labels is None else {"label": labels[number]}
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), **more})
    return rows


def make_collator(contender: Contender, vocab_size: int) -> Any:
    """The collator of transformers, with dynamic padding; for MLM it also masks tokens.

    The texts are ids already, so its tokenizer has only the right size and the special tokens.
    """
    import transformers

    words = [*SPECIAL, *(f"word{number}" for number in range(len(SPECIAL), vocab_size))]
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **dict(zip(names, SPECIAL)))
    if contender.stage == "finetune":
        return transformers.DataCollatorWithPadding(tokenizer)
    share = contender.config.masking.probability
    return transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=share)


def make_model(contender: Contender, vocab_size: int, classes: int) -> nn.Module:
    """BERT with a head for the stage. No dropout on attention weights, because ours has none."""
    import transformers

    config = contender.config
    size = config.size
    settings = transformers.BertConfig(
        vocab_size=vocab_size,
        hidden_size=size.width,
        num_hidden_layers=size.num_layers,
        num_attention_heads=size.num_heads,
        intermediate_size=size.feed_forward,
        max_position_embeddings=config.seq_len,
        hidden_dropout_prob=size.dropout,
        attention_probs_dropout_prob=0.0,
        classifier_dropout=config.head.dropout,
        num_labels=max(2, classes),
        attn_implementation=contender.implementation,
    )
    return getattr(transformers, MODELS[contender.stage])(settings)


def make_arguments(contender: Contender, folder: Path) -> Any:
    """TrainingArguments with the same effective batch, optimizer and dtype; no evaluation, no checkpoint."""
    import transformers

    config, training = contender.config, contender.training
    hardware, batch = config.hardware, training.batch_size
    tokens = max(1, (hardware.micro_tokens or batch * config.seq_len) // config.seq_len)
    most = min(hardware.micro_batch or batch, tokens, batch)
    micro = next(size for size in range(most, 0, -1) if batch % size == 0)
    modern = "train_sampling_strategy" in {field.name for field in fields(transformers.TrainingArguments)}
    grouping = {"train_sampling_strategy": "group_by_length"} if modern else {"group_by_length": True}
    return transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=ENDLESS,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=batch // micro,
        gradient_checkpointing=hardware.gradient_checkpointing,
        dataloader_num_workers=hardware.workers,
        optim="adamw_torch_fused",
        learning_rate=training.lr,
        weight_decay=training.weight_decay,
        adam_beta1=training.beta1,
        adam_beta2=training.beta2,
        max_grad_norm=training.clip_norm,
        warmup_steps=ENDLESS // 10,
        bf16=contender.dtype == "bf16",
        fp16=contender.dtype == "fp16",
        use_cpu=contender.device == "cpu",
        torch_compile=hardware.compile,
        seed=config.seed,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,  # else the MLM collator must find the special tokens itself
        **(grouping if training.group_by_length else {}),
    )


def train(meter: Meter, contender: Contender, prepared: Prepared, tokenizer: TextTokenizer, folder: Path) -> None:
    """Trains with the Trainer of transformers, timed by `meter`. `folder`: for its files."""
    import transformers

    transformers.logging.set_verbosity_error()
    # Loads the code now, so that it does not count as memory of the training
    getattr(transformers, MODELS[contender.stage])

    class TimedTrainer(transformers.Trainer):
        """A Trainer that reports every batch to the meter."""

        def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **changes: Any) -> Any:
            meter.batch(inputs["input_ids"], inputs["attention_mask"])
            return super().compute_loss(model, inputs, *args, **changes)

    config, finetunes = contender.config, contender.stage == "finetune"
    texts = prepared.train["text"] if finetunes else prepared.mlm_texts
    how: dict[str, Any] = {"seq_len": config.seq_len, "truncate": config.dataset.truncate}
    encoded = encode_cached(texts, tokenizer, **how, what="train" if finetunes else "text for MLM")
    rows = make_rows(encoded, prepared.train.labels.tolist() if finetunes else None)
    collate = make_collator(contender, tokenizer.vocab_size)
    torch.manual_seed(config.seed)
    meter.start_memory()
    trainer = TimedTrainer(
        model=make_model(contender, tokenizer.vocab_size, len(prepared.classes)),
        args=make_arguments(contender, folder),
        train_dataset=rows,
        data_collator=collate,
    )
    trainer.create_optimizer()
    meter.watch(trainer.model)
    trainer.train()
