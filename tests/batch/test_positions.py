"""Default positions: BERT's rule, and that the seam carries another family's."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.roberta.modeling_roberta import RobertaEmbeddings

import builders
from bertfast.batch.inputs import Inputs
from bertfast.batch.layout import make_batch
from bertfast.batch.masks import PackedMask
from bertfast.batch.packed import OutputNeeds
from bertfast.cache.layout import make_cached_batch
from bertfast.cache.objects import CACHE_FIELD
from bertfast.cache.store import open_cache
from bertfast.graph.family import BERT

B, S, PAD = 3, 6, 1


def roberta_positions(model: Any, inputs: Inputs, dropped: PackedMask | None) -> Tensor:
    """Padding gets position PAD, other tokens are counted from PAD + 1; embeddings count their columns."""
    if inputs.ids is None:
        positions = (torch.arange(inputs.columns, device=inputs.device) + PAD + 1).expand(inputs.batch, -1)
    else:
        real = inputs.ids.ne(PAD).int()
        positions = (real.cumsum(dim=1) + inputs.past) * real + PAD
    flat = positions.reshape(-1).long()
    return flat if dropped is None else flat.index_select(0, dropped.indices)


def model_with(rule: Any, **config: Any) -> Any:
    model = builders.pair("BertModel", **config)[1]
    return SimpleNamespace(config=model.config, embeddings=model.embeddings, family=replace(BERT, positions=rule))


@pytest.mark.parametrize("kind", builders.MASKS)
@pytest.mark.parametrize("keep_padding", [False, True], ids=["packed", "keep_padding"])
def test_robertas_rule_fits(kind: str, keep_padding: bool) -> None:
    mask = builders.mask(kind, B, S)
    ids = torch.randint(PAD + 1, 40, (B, S))
    if mask is not None:
        ids = ids.masked_fill(mask.eq(0), PAD)
    batch = make_batch({"input_ids": ids, "attention_mask": mask}, model_with(roberta_positions), OutputNeeds(keep_padding))
    expected = RobertaEmbeddings.create_position_ids_from_input_ids(ids, PAD).reshape(-1)
    assert torch.equal(batch.rows.position_ids, expected if batch.indices is None else expected[batch.indices])


def test_robertas_rule_fits_embeddings() -> None:
    embeds = torch.zeros(B, S, builders.TINY["hidden_size"])
    batch = make_batch({"inputs_embeds": embeds}, model_with(roberta_positions), OutputNeeds())
    assert torch.equal(batch.rows.position_ids.view(B, S), RobertaEmbeddings.create_position_ids_from_inputs_embeds(embeds, PAD))


def test_robertas_rule_counts_on_from_a_cache() -> None:
    model = builders.pair("BertModel", is_decoder=True)[1]
    with torch.no_grad():
        cache = model(torch.randint(PAD + 1, 40, (B, 4)), use_cache=True)[CACHE_FIELD]
    ids = torch.randint(PAD + 1, 40, (B, 2))
    arguments = {"input_ids": ids, "past_key_values": cache}
    stand_in = model_with(roberta_positions, is_decoder=True)
    batch, _ = make_cached_batch(arguments, stand_in, OutputNeeds(), open_cache(arguments, model.config))
    expected = RobertaEmbeddings.create_position_ids_from_input_ids(ids, PAD, 4)
    assert torch.equal(batch.rows.position_ids.view(B, 2), expected)


@pytest.mark.parametrize("kind", builders.MASKS)
def test_berts_positions_are_columns_of_the_padded_input(kind: str) -> None:
    ids = torch.randint(0, 40, (B, S))
    batch = make_batch({"input_ids": ids, "attention_mask": builders.mask(kind, B, S)}, model_with(BERT.positions), OutputNeeds())
    columns = torch.arange(S).repeat(B)
    assert torch.equal(batch.rows.position_ids, columns if batch.indices is None else columns[batch.indices])


def test_more_columns_than_positions_are_refused() -> None:
    model = builders.pair("BertModel", max_position_embeddings=S - 1)[1]
    with pytest.raises(ValueError, match=f"input_ids: got length {S} .*max_position_embeddings={S - 1}"):
        make_batch({"input_ids": torch.zeros(B, S, dtype=torch.int64)}, model, OutputNeeds())
    given = {"input_ids": torch.zeros(B, S, dtype=torch.int64), "position_ids": torch.zeros(B, S, dtype=torch.int64)}
    assert make_batch(given, model, OutputNeeds()).rows.position_ids.eq(0).all()
