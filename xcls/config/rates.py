"""The rules of conf/config.yaml for training: the number of steps, and the learning rates that are null."""

from __future__ import annotations

from xcls.config.schema import Config, Training

LR_TIMES_WIDTH = 0.128  # Yang et al. 2022 (arXiv 2203.03466): the best rate falls as 1 / width
EMBEDDING_LR_FACTOR = 10.0  # for a classifier from scratch: most words occur in only a few of its steps
MOST_EVALUATIONS = 10  # if min_steps has raised the number of epochs: the epochs are short then


def settle_rates(config: Config) -> None:
    """Replaces learning rates and factors that are null by numbers."""
    for stage in ("pretraining", "finetuning"):
        training = getattr(config, stage)
        if training.lr is None:
            training.lr = float(f"{LR_TIMES_WIDTH / config.size.width:.3g}")
        if training.embedding_lr_factor is None:
            scratch = stage == "finetuning" and config.pretrain is None
            training.embedding_lr_factor = EMBEDDING_LR_FACTOR if scratch else 1.0


def total_steps(training: Training, steps_per_epoch: int) -> int:
    """The number of steps: `max_steps`, else `epochs`, else the larger of `min_epochs` and `min_steps`."""
    if training.max_steps is not None:
        return training.max_steps
    epochs = training.min_epochs if training.epochs is None else training.epochs
    steps = max(1, round(epochs * steps_per_epoch))
    return steps if training.epochs is not None else max(steps, training.min_steps)


def steps_between(training: Training, steps_per_epoch: int) -> int:
    """The steps that count as one epoch for `eval_every_epochs` and `checkpoint_every_epochs`: those of one epoch, or
    more if `min_steps` has raised the number of epochs, so that there are at most about MOST_EVALUATIONS."""
    total = total_steps(training, steps_per_epoch)
    raised = (
        training.max_steps is None and training.epochs is None and total > round(training.min_epochs * steps_per_epoch)
    )
    return max(steps_per_epoch, total // MOST_EVALUATIONS) if raised else steps_per_epoch
