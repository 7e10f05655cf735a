"""BERT's module tree, as the graph reads it. Source: transformers.models.bert.modeling_bert."""

import torch
from torch import Tensor, nn
from transformers.models.bert import modeling_bert

from bertfast.batch.packed import GraphInputs
from bertfast.graph.heads import lm_head_logits
from bertfast.graph.layers import AttentionModules, LayerModules, with_memory
from bertfast.graph.projections import affine, embedding_table
from bertfast.ops import Ops


def embed(base: modeling_bert.BertModel, inputs: GraphInputs, O: Ops) -> Tensor:  # -> [R, H]
    """LayerNorm(word + token type + position)."""
    embeddings = base.embeddings
    return embedding_table(
        embeddings.word_embeddings, inputs, O,
        inputs.position_ids, with_memory(embeddings.position_embeddings.weight),
        inputs.token_type_ids, with_memory(embeddings.token_type_embeddings.weight),
        *affine(embeddings.LayerNorm),
    )  # fmt: skip


def layers(base: modeling_bert.BertModel) -> list[LayerModules]:
    return [
        LayerModules(
            attention(layer.attention), attention(layer.crossattention) if hasattr(layer, "crossattention") else None,
            layer.intermediate.dense, layer.intermediate.intermediate_act_fn, layer.output.dense, layer.output.LayerNorm,
        )
        for layer in base.encoder.layer
    ]  # fmt: skip


def attention(module: modeling_bert.BertAttention) -> AttentionModules:
    inner, output = module.self, module.output
    heads = inner.all_head_size // inner.attention_head_size  # as BertSelfAttention.forward, which never reads num_attention_heads
    return AttentionModules(inner.query, inner.key, inner.value, heads, output.dense, output.LayerNorm)


def why_changed(name: str, m: nn.Module) -> str | None:
    """Why a module's forward computes something else than the graph, by attributes and buffers. name: in its parent."""
    if isinstance(m, (modeling_bert.BertSelfAttention, modeling_bert.BertCrossAttention)):
        expected, causal = m.attention_head_size**-0.5, isinstance(m, modeling_bert.BertSelfAttention) and bool(m.config.is_decoder)
        if bool(m.is_causal) != causal:  # transformers' sdpa reads it where there is no mask, the config where there is one
            return f"is_causal of the {type(m).__name__} called {name} is {m.is_causal}, but config.is_decoder is {m.config.is_decoder}"
        return None if m.scaling == expected else f"the scaling of the {type(m).__name__} called {name} is {m.scaling}, expected {expected}"
    if isinstance(m, modeling_bert.BertEmbeddings):
        positions, types = m._buffers.get("position_ids"), m._buffers.get("token_type_ids")
        if positions is not None and positions.is_meta:
            return None
        if positions is None or not torch.equal(positions.flatten(), torch.arange(positions.numel(), device=positions.device)):
            return "the position_ids buffer of the embeddings was edited; pass position_ids to the call instead"
        if types is not None and types.any():
            return "the token_type_ids buffer of the embeddings was edited; pass token_type_ids to the call instead"
    return None


def lm_logits(model: modeling_bert.BertPreTrainedModel, x: Tensor, O: Ops) -> Tensor:  # [R, H] -> [R, V]
    return lm_head_logits(model.cls.predictions, x, O)


def is_quantizable(name: str) -> bool:
    """int8: the linear layers of the encoder, the word embeddings and a language-model head's decoder. name: as in named_modules()."""
    parent, _, last = name.rpartition(".")
    within = f".{parent}."
    in_layer = ".encoder.layer." in within and last in ("query", "key", "value", "dense")
    return in_layer or last == "word_embeddings" or (last == "decoder" and parent.endswith("predictions"))


# The classes that the graph computes in place of, by attribute name ("<index>" inside a ModuleList). With a module of another class the
# model takes the reference path.
MODULES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("query", "key", "value", "dense", "decoder", "classifier", "qa_outputs", "seq_relationship"), (nn.Linear,)),
    **dict.fromkeys(("word_embeddings", "position_embeddings", "token_type_embeddings"), (nn.Embedding,)),
    "LayerNorm": (nn.LayerNorm,),
    "layer": (nn.ModuleList,),
    "cls": (modeling_bert.BertOnlyMLMHead, modeling_bert.BertOnlyNSPHead, modeling_bert.BertPreTrainingHeads),
    "<index>": (modeling_bert.BertLayer,),
    "embeddings": (modeling_bert.BertEmbeddings,),
    "encoder": (modeling_bert.BertEncoder,),
    "pooler": (modeling_bert.BertPooler,),
    "self": (modeling_bert.BertSelfAttention, modeling_bert.BertCrossAttention),
    "intermediate": (modeling_bert.BertIntermediate,),
    "output": (modeling_bert.BertSelfOutput, modeling_bert.BertOutput),
    "crossattention": (modeling_bert.BertAttention,),
    "attention": (modeling_bert.BertAttention,),
    "transform": (modeling_bert.BertPredictionHeadTransform,),
    "predictions": (modeling_bert.BertLMPredictionHead,),
}
