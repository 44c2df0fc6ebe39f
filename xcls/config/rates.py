"""The rules of training that conf/config.yaml states: how many steps, and which learning rates where none is set."""

from __future__ import annotations

from xcls.config.schema import Config, Training

LR_TIMES_WIDTH = 0.128  # Yang et al. 2022 (arXiv 2203.03466): the best rate falls as 1 / width
EMBEDDING_LR_FACTOR = 10.0  # of a classifier from scratch: most words occur in few of its few steps
MOST_EVALUATIONS = 10  # of a training whose epochs were raised: its epochs are short


def settle_rates(config: Config) -> None:
    """Puts numbers in place of the rates that are null."""
    for stage in ("pretraining", "finetuning"):
        training = getattr(config, stage)
        if training.lr is None:
            training.lr = float(f"{LR_TIMES_WIDTH / config.size.width:.3g}")
        if training.embedding_lr_factor is None:
            scratch = stage == "finetuning" and config.pretrain is None
            training.embedding_lr_factor = EMBEDDING_LR_FACTOR if scratch else 1.0


def total_steps(training: Training, steps_per_epoch: int) -> int:
    """The steps of a training: `max_steps`, else `epochs`, else the greater of `min_epochs` and `min_steps`."""
    if training.max_steps is not None:
        return training.max_steps
    epochs = training.min_epochs if training.epochs is None else training.epochs
    steps = max(1, round(epochs * steps_per_epoch))
    return steps if training.epochs is not None else max(steps, training.min_steps)


def steps_between(training: Training, steps_per_epoch: int) -> int:
    """The steps that `eval_every_epochs` and `checkpoint_every_epochs` take for an epoch: those of one, or more where
    `min_steps` has raised the epochs, so that there are no more than MOST_EVALUATIONS of them."""
    total = total_steps(training, steps_per_epoch)
    raised = (
        training.max_steps is None and training.epochs is None and total > round(training.min_epochs * steps_per_epoch)
    )
    return max(steps_per_epoch, total // MOST_EVALUATIONS) if raised else steps_per_epoch
