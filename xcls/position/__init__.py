"""Position encodings: added to the embeddings, rotating queries and keys, or biasing the logits."""
