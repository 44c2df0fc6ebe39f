"""One training loop for both stages, and what it needs: optimizers, checkpoints, metrics, costs, tracking."""
