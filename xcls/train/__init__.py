"""One training loop for both stages, and what it needs: precision, optimizers, checkpoints, metrics, costs, tracking."""
