"""Data: sources of text, tokenizers, and batches that are functions of (seed, epoch, example) alone."""
