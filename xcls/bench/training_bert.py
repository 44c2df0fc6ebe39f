"""transformers' training in the bench: BERT of our size with its Trainer.

Letters: B batch, N tokens.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, Callable

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from xcls.bench.training_meter import BACKWARD, DATA, FORWARD, REST, Meter
from xcls.bench.training_plan import Contender, Recipe
from xcls.data.encode import Encoded

ENDLESS = 10**9  # steps: the bench says when it is enough
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class Rows(Dataset):
    """Documents as lists of ids, as a tokenizer leaves them, in memory: quicker than a table on disk."""

    def __init__(self, *, encoded: Encoded, labels: list[int] | None, meter: Meter) -> None:
        self.encoded, self.labels, self.meter = encoded, labels, meter

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """input_ids, attention_mask and label, or special_tokens_mask for MLM."""
        self.meter.enter(DATA)
        ids = self.encoded[row].tolist()
        item: dict[str, Any] = {"input_ids": ids, "attention_mask": [1] * len(ids)}
        if self.labels is None:
            item["special_tokens_mask"] = [int(token < len(SPECIAL)) for token in ids]
        else:
            item["label"] = self.labels[row]
        self.meter.enter(REST)
        return item


def make_tokenizer(vocab_size: int) -> Any:
    """What the collators ask of a tokenizer: its size and its special tokens. The texts are ids already."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL, *(f"word{number}" for number in range(len(SPECIAL), vocab_size))]
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(tokenizer_object=inner, **dict(zip(names, SPECIAL)))


def make_model(recipe: Recipe, attention: str) -> nn.Module:
    """BERT with a head for the stage. Dropout on attention probabilities is the bench's setting: ours has none."""
    from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

    size = recipe.size
    config = BertConfig(
        vocab_size=recipe.texts.vocab_size,
        hidden_size=size.width,
        num_hidden_layers=size.num_layers,
        num_attention_heads=size.num_heads,
        intermediate_size=size.feed_forward,
        max_position_embeddings=recipe.seq_len,
        hidden_dropout_prob=size.dropout,
        attention_probs_dropout_prob=recipe.attention_dropout,
        classifier_dropout=recipe.head.dropout,
        num_labels=max(2, recipe.texts.num_classes),
        attn_implementation=attention,
    )
    return {"finetune": BertForSequenceClassification, "pretrain": BertForMaskedLM}[recipe.stage](config)


def make_collator(recipe: Recipe) -> Callable[[list[dict[str, Any]]], dict[str, Tensor]]:
    """transformers' collator with dynamic padding; for MLM it draws the masks."""
    from transformers import DataCollatorForLanguageModeling, DataCollatorWithPadding

    tokenizer = make_tokenizer(recipe.texts.vocab_size)
    if recipe.stage == "finetune":
        return DataCollatorWithPadding(tokenizer)
    return DataCollatorForLanguageModeling(tokenizer, mlm_probability=recipe.masking.probability)


def make_arguments(recipe: Recipe, grouped: bool, folder: Path) -> Any:
    """TrainingArguments of the recipe: same effective batch, optimizer and dtype; no evaluation, no checkpoint."""
    from transformers import TrainingArguments

    training, batch = recipe.training, recipe.training.batch_size
    hardware = recipe.hardware
    tokens = max(1, (hardware.micro_tokens or batch * recipe.seq_len) // recipe.seq_len)
    most = min(hardware.micro_batch or batch, tokens, batch)
    micro = next(size for size in range(most, 0, -1) if batch % size == 0)
    modern = "train_sampling_strategy" in {field.name for field in fields(TrainingArguments)}
    grouping = {"train_sampling_strategy": "group_by_length"} if modern else {"group_by_length": True}
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=ENDLESS,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=batch // micro,
        gradient_checkpointing=recipe.hardware.gradient_checkpointing,
        dataloader_num_workers=recipe.hardware.workers,
        optim="adamw_torch_fused",
        learning_rate=training.lr,
        weight_decay=training.weight_decay,
        adam_beta1=training.beta1,
        adam_beta2=training.beta2,
        max_grad_norm=training.clip_norm,
        warmup_steps=ENDLESS // 10,
        bf16=recipe.dtype == "bf16",
        fp16=recipe.dtype == "fp16",
        use_cpu=recipe.device == "cpu",
        torch_compile=recipe.compile,
        seed=recipe.seed,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,  # else the MLM collator would have to find the special tokens by itself
        **(grouping if grouped else {}),
    )


def make_trainer(recipe: Recipe, contender: Contender, meter: Meter, folder: Path) -> Any:
    """transformers' Trainer on the meter's clock."""
    from transformers import Trainer

    class TimedTrainer(Trainer):
        """Tells the meter of every batch."""

        def compute_loss(
            self,
            model: nn.Module,
            inputs: dict[str, Tensor],
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Any:
            meter.batch(inputs["input_ids"], inputs["attention_mask"])
            meter.enter(FORWARD)
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            meter.enter(BACKWARD)
            return loss

    encoded, labels, _ = recipe.texts.read()
    rows = Rows(encoded=encoded, labels=labels.tolist() if recipe.stage == "finetune" else None, meter=meter)
    collate = make_collator(recipe)

    def timed_collate(items: list[dict[str, Any]]) -> dict[str, Tensor]:
        meter.enter(DATA)
        batch = collate(items)
        meter.enter(REST)
        return batch

    arguments = make_arguments(recipe, contender.grouped, folder)
    model = make_model(recipe, contender.attention)
    return TimedTrainer(model=model, args=arguments, train_dataset=rows, data_collator=timed_collate)


def train(recipe: Recipe, contender: Contender, meter: Meter, folder: Path, ready: Callable[[nn.Module], None]) -> None:
    """Trains until the meter raises Enough. `folder`: what a run leaves behind; ready(model) comes before any step."""
    import transformers

    transformers.logging.set_verbosity_error()
    for name in ("BertForMaskedLM", "BertForSequenceClassification", "Trainer"):
        getattr(transformers, name)  # loads the code, which is none of the training's memory
    torch.manual_seed(recipe.seed)
    meter.start_memory()
    trainer = make_trainer(recipe, contender, meter, folder)
    trainer.create_optimizer()
    meter.watch(trainer.model, trainer.optimizer, recipe.steps)
    ready(trainer.model)
    meter.begin()
    trainer.train()
