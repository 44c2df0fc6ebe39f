"""The encoder around the attention: projections, blocks, embeddings and heads.

Letters: B batch, N tokens, E model width, H heads, D head dimension, V vocabulary, C classes, K chosen tokens.
"""
