"""The peer to beat on a GPU: an unpadded BERT in plain PyTorch, without anything of bertfast.

The encoder of a transformers BertModel on packed rows, with torch.nn.attention.varlen for the attention (FlashAttention, float16 or
bfloat16); torch.compile may compile it.

Shape letters: T real tokens, B sequences, N heads, D head size, H hidden.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn


class VarlenBert(nn.Module):
    """[T] ids, positions and types with their cu_seqlens [B + 1] int32 -> last hidden state [T, H] and pooled [B, H]."""

    def __init__(self, bert: Any) -> None:
        super().__init__()
        self.bert = bert
        self.heads = bert.config.num_attention_heads
        self.qkv = nn.ParameterList()
        with torch.no_grad():
            for layer in bert.encoder.layer:
                parts = (layer.attention.self.query, layer.attention.self.key, layer.attention.self.value)
                for kind in ("weight", "bias"):
                    self.qkv.append(nn.Parameter(torch.cat([getattr(part, kind) for part in parts]), requires_grad=False))

    def forward(self, ids: Tensor, positions: Tensor, types: Tensor, cu_seqlens: Tensor, longest: int) -> tuple[Tensor, Tensor]:
        e = self.bert.embeddings
        x = e.LayerNorm(e.word_embeddings(ids) + e.token_type_embeddings(types) + e.position_embeddings(positions))
        for i, layer in enumerate(self.bert.encoder.layer):
            q, k, v = F.linear(x, self.qkv[2 * i], self.qkv[2 * i + 1]).view(len(x), 3, self.heads, -1).unbind(1)
            context = varlen_attn(q, k, v, cu_seqlens, cu_seqlens, longest, longest).flatten(1)
            attended = layer.attention.output
            x = attended.LayerNorm(attended.dense(context) + x)
            x = layer.output.LayerNorm(layer.output.dense(F.gelu(layer.intermediate.dense(x))) + x)
        return x, self.bert.pooler(x[cu_seqlens[:-1].long()][:, None])
