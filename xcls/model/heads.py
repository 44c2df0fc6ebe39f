"""The heads of the encoder: for masked language modelling (MLM), and the classifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xcls.data.masking import IGNORED
from xcls.model.dropout import Dropout
from xcls.model.encoder import Encoder
from xcls.model.weights import initialise


class MLMHead(nn.Module):
    """Dense, GELU, norm, then the token embedding as decoder with a bias (Devlin et al. 2019; Press & Wolf 2017)."""

    def __init__(self, *, embed_dim: int, vocab_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(embed_dim, embed_dim)
        self.norm = nn.LayerNorm(embed_dim)
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        initialise(self)

    def forward(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        """hidden [..., E] and the embedding's weight [V, E] -> logits [..., V]."""
        return F.linear(self.norm(F.gelu(self.dense(hidden))), embedding, self.bias)


class MaskedLanguageModel(nn.Module):
    """Encoder and MLM head.

    The logits, and all of the last layer after its attention, are computed only for chosen tokens: at 15 %, a seventh
    of that work.
    """

    def __init__(self, *, encoder: Encoder, head: MLMHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None, rows: Tensor, targets: Tensor) -> Tensor:
        """Sum of the losses (nats, fp32) of the chosen tokens.

        input_ids [B, N]; attention_mask [B, N] (True = real token), None where nothing is padded; rows int64 [K], the
        numbers of the chosen ones among the B * N tokens; targets [K], their ids (-100: does not count). The CPU makes
        rows and targets with the batch (`chosen_rows`).
        """
        hidden = self.encoder(input_ids, attention_mask, rows=rows)  # [K, E]
        logits = self.head(hidden, self.encoder.token_embedding.weight)  # [K, V]
        return F.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum")


def pool_cls(hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The first token, [CLS]: hidden [B, N, E] -> [B, E]."""
    return hidden[:, 0]


def pool_mean(hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The mean over real tokens: hidden [B, N, E], attention_mask [B, N] -> [B, E], fp32 inside."""
    if attention_mask is None:
        return hidden.mean(1, dtype=torch.float32)
    total = hidden.masked_fill(~attention_mask.unsqueeze(-1), 0.0).sum(1, dtype=torch.float32)  # not a product: 0 * NaN
    return total / attention_mask.sum(1, keepdim=True).clamp(min=1)


def pool_max(hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The maximum over real tokens: hidden [B, N, E], attention_mask [B, N] -> [B, E]; zeros where none is real."""
    if attention_mask is None:
        return hidden.amax(1)
    highest = hidden.masked_fill(~attention_mask.unsqueeze(-1), float("-inf")).amax(1)
    return highest.masked_fill(~attention_mask.any(1, keepdim=True), 0.0)


POOLINGS = {"cls": pool_cls, "mean": pool_mean, "max": pool_max}


class Classifier(nn.Module):
    """Pooling, dropout and one linear layer. No hidden layer: BERT trains its own by next-sentence prediction."""

    def __init__(self, *, embed_dim: int, num_classes: int, pooling: str, dropout: float) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling={pooling}: one of {', '.join(POOLINGS)} is needed")
        self.pooling = pooling
        self.dropout = Dropout(rate=dropout)
        self.linear = nn.Linear(embed_dim, num_classes)
        initialise(self)

    def forward(self, hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
        """hidden [B, N, E], attention_mask [B, N] (True = real token) -> logits [B, C]. Padding is ignored."""
        return self.linear(self.dropout(POOLINGS[self.pooling](hidden, attention_mask)))


class TextClassifier(nn.Module):
    """Encoder and classifier. With pooling=cls, the last layer computes only [CLS] after its attention."""

    def __init__(self, *, encoder: Encoder, head: Classifier) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """input_ids, attention_mask [B, N] -> logits [B, C]."""
        if self.head.pooling != "cls":
            return self.head(self.encoder(input_ids, attention_mask), attention_mask)
        batch, length = input_ids.shape
        rows = torch.arange(batch, device=input_ids.device) * length
        return self.head(self.encoder(input_ids, attention_mask, rows=rows).unsqueeze(1), None)  # [B, 1, E]
