"""The encoder around the attention: projections, blocks, embeddings and heads.

Shapes: B batch, N tokens, E width, H heads, D head dimension, V vocabulary, C classes.
"""
