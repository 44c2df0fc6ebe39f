"""Data: sources of text, tokenizers, and batches that depend only on (seed, epoch, example)."""
