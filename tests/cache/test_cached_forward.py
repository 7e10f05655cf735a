"""forward() on a KV cache gives transformers' logits without one, for any split and padding of the sequence."""

import copy

import pytest
import torch
from torch import Tensor
from transformers import EncoderDecoderModel
from transformers.cache_utils import DynamicCache, EncoderDecoderCache, StaticCache

import bertfast
import builders
from bertfast.cache.layers import GrowingLayer
from bertfast.cache.objects import CACHE_FIELD
from bertfast.engine import eligibility

LIMIT = 2e-5  # float32, for the whole cached forward; logits here are between 1 and 10 in size
B, S, V, ENCODER_COLUMNS = 3, 11, 60, 7

GEOMETRY = {
    "vocab_size": V, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96,
    "max_position_embeddings": 24, "type_vocab_size": 2,
}  # fmt: skip

LENGTHS = {"none": [S, S, S], "ragged": [S, 7, 4]}


def decoder_pair(attention="sdpa", kind="BertLMHeadModel", **options):
    return builders.pair(
        kind, std=0.15, **GEOMETRY, is_decoder=True, use_cache=True, attn_implementation=attention, **options
    )  # fmt: skip


@pytest.fixture
def reference_path_allowed():
    """For tests of calls that take the reference path."""


@pytest.fixture(autouse=True)
def fast_path_only(monkeypatch, request):
    """A call on the reference path would prove nothing in the other tests."""
    if "reference_path_allowed" not in request.fixturenames:

        def refuse(kind, message):
            raise AssertionError(f"{kind} took the reference path: {message}")

        monkeypatch.setattr(eligibility, "warn_once", refuse)


def padding_mask(padding: str) -> Tensor:
    if padding == "gaps":
        mask = torch.rand(B, S) < 0.6
        mask[:, 0] = mask[:, 5] = True
        return mask.long()
    lengths = torch.tensor(LENGTHS["none" if padding == "none" else "ragged"])[:, None]
    columns = torch.arange(S)
    return (columns < lengths if padding == "right" else columns >= S - lengths).long()


def ids_mask_positions(padding: str):
    mask = padding_mask(padding)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return torch.randint(0, V, (B, S)), mask, positions


def run_in_chunks(model, ids, mask, positions, cuts, cache=None, **extra):
    """Logits of all columns, computed in calls that end at `cuts`."""
    logits, start = [], 0
    for end in [*cuts, S]:
        part = slice(start, end)
        out = model(
            ids[:, part], attention_mask=None if mask is None else mask[:, :end], position_ids=positions[:, part], use_cache=True,
            **{CACHE_FIELD: cache}, **extra,
        )  # fmt: skip
        logits.append(out[0])
        cache, start = out[CACHE_FIELD], end
    return torch.cat(logits, dim=1), cache


def assert_close(actual: Tensor, expected: Tensor, mask: Tensor | None = None) -> None:
    difference = (actual - expected).abs()
    if mask is not None:
        difference = difference[mask.bool()]
    assert difference.max() <= LIMIT


SPLITS = [*([cut] for cut in range(1, S)), list(range(1, S)), [3, 4, 9], [1, 2]]


@pytest.mark.parametrize("padding", ["none", "left", "right", "gaps"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_every_split_gives_the_logits_of_the_whole(padding, attention):
    original, model = decoder_pair(attention)
    ids, mask, positions = ids_mask_positions(padding)
    expected = original(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    for cuts in SPLITS:
        actual, cache = run_in_chunks(model, ids, mask, positions, cuts)
        assert_close(actual, expected, mask)
        assert cache.get_seq_length() == S


@pytest.mark.parametrize("make_cache", [
    pytest.param(lambda config: None, id="none"),
    pytest.param(lambda config: DynamicCache(), id="dynamic"),
    pytest.param(lambda config: DynamicCache(config=config), id="dynamic-with-config"),
    pytest.param(lambda config: StaticCache(config=config, max_cache_len=S + 3), id="static"),
    pytest.param(lambda config: EncoderDecoderCache(DynamicCache(), DynamicCache()), id="encoder-decoder"),
])  # fmt: skip
@pytest.mark.parametrize("padding", ["none", "left", "right"])
@torch.no_grad()
def test_every_kind_of_cache(make_cache, padding):
    original, model = decoder_pair()
    ids, mask, positions = ids_mask_positions(padding)
    expected = original(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    given = make_cache(model.config)
    actual, returned = run_in_chunks(model, ids, mask, positions, [5, 6, 9], given)
    assert_close(actual, expected, mask)
    assert given is None or returned is given, "the caller's object is filled and returned"
    assert int(returned.get_seq_length()) == S


@torch.no_grad()
def test_a_legacy_tuple_comes_back_as_one():
    original, model = decoder_pair()
    ids, mask, positions = ids_mask_positions("left")
    expected = original(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    first = model(ids[:, :6], attention_mask=mask[:, :6], position_ids=positions[:, :6])
    legacy = tuple((layer.keys, layer.values) for layer in first[CACHE_FIELD].layers)
    second = model(ids[:, 6:], attention_mask=mask, position_ids=positions[:, 6:], **{CACHE_FIELD: legacy})
    assert_close(torch.cat([first.logits, second.logits], dim=1), expected, mask)
    assert isinstance(second[CACHE_FIELD], tuple)
    assert len(second[CACHE_FIELD]) == 3
    assert all(t.shape == (B, 4, S, 12) for layer in second[CACHE_FIELD] for t in layer)
    assert legacy[0][0].shape[2] == 6


@torch.no_grad()
def test_the_cache_holds_what_transformers_cache_holds():
    original, model = decoder_pair()
    ids, _, _ = ids_mask_positions("none")
    theirs_cache, ours = original(ids)[CACHE_FIELD], model(ids)[CACHE_FIELD]
    for a, b in zip(theirs_cache.layers, ours.layers, strict=True):
        assert_close(b.keys, a.keys)
        assert_close(b.values, a.values)


@torch.no_grad()
def test_either_forward_continues_the_others_cache():
    original, model = decoder_pair()
    ids, mask, positions = ids_mask_positions("left")
    expected = original(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    for one, other in ((original, model), (model, original)):
        first = one(ids[:, :6], attention_mask=mask[:, :6], position_ids=positions[:, :6])
        second = other(ids[:, 6:9], attention_mask=mask[:, :9], position_ids=positions[:, 6:9], **{CACHE_FIELD: first[CACHE_FIELD]})
        third = one(ids[:, 9:], attention_mask=mask, position_ids=positions[:, 9:], **{CACHE_FIELD: second[CACHE_FIELD]})
        assert_close(torch.cat([first.logits, second.logits, third.logits], dim=1), expected, mask)


@torch.no_grad()
def test_positions_continue_from_the_cache():
    original, model = decoder_pair()
    ids, _, _ = ids_mask_positions("none")
    expected = original(ids, use_cache=False).logits
    first = model(ids[:, :4])
    second = model(ids[:, 4:], **{CACHE_FIELD: first[CACHE_FIELD]})
    assert_close(torch.cat([first.logits, second.logits], dim=1), expected)


@pytest.mark.parametrize("padding", ["left", "right", "gaps"])
@torch.no_grad()
def test_keep_padding_computes_padded_columns_as_transformers_does(padding):
    original, model = decoder_pair()
    model.keep_padding = model.bert.keep_padding = True
    ids, mask, positions = ids_mask_positions(padding)
    for cuts in ([4], [1, 2, 7]):
        expected, _ = run_in_chunks(original, ids, mask, positions, cuts)
        actual, _ = run_in_chunks(model, ids, mask, positions, cuts)
        assert_close(actual, expected)


@torch.no_grad()
def test_a_row_whose_new_columns_are_all_padding_is_computed_as_transformers_does():
    original, model = decoder_pair()
    ids, mask, positions = ids_mask_positions("none")
    mask[1, 8:] = 0
    expected, _ = run_in_chunks(original, ids, mask, positions, [8, 9])
    actual, _ = run_in_chunks(model, ids, mask, positions, [8, 9])
    assert_close(actual, expected)


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("static", [False, True])
@torch.no_grad()
def test_four_dimensional_masks(kind, static):
    original, model = decoder_pair()
    ids, mask, positions = ids_mask_positions("left")
    total = S + 3 if static else S
    seen = torch.zeros(B, 1, S, total, dtype=torch.bool)
    seen[..., :S] = torch.ones(S, S, dtype=torch.bool).tril() & mask[:, None, None, :].bool()
    seen[:, :, 3, :2] = False
    seen = torch.zeros(seen.shape).masked_fill(~seen, -1e30) if kind == "float" else seen
    results = []
    for m in (original, model):
        cache, logits = (StaticCache(config=model.config, max_cache_len=total) if static else None), []
        for start, end in ((0, 5), (5, 6), (6, S)):
            part = seen[:, :, start:end, : total if static else end]
            out = m(ids[:, start:end], attention_mask=part, position_ids=positions[:, start:end], **{CACHE_FIELD: cache})
            logits.append(out.logits)
            cache = out[CACHE_FIELD]
        results.append(torch.cat(logits, dim=1))
    assert_close(results[1], results[0], mask)


@torch.no_grad()
def test_a_mask_made_for_the_whole_generation():
    original, model = decoder_pair()
    ids, mask, positions = ids_mask_positions("left")
    longer = torch.cat([mask, torch.ones(B, 4, dtype=torch.long)], dim=1)
    first = model(ids[:, :6], attention_mask=mask[:, :6], position_ids=positions[:, :6])
    second = model(ids[:, 6:], attention_mask=longer, position_ids=positions[:, 6:], **{CACHE_FIELD: first[CACHE_FIELD]})
    expected = original(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits[:, 6:]
    assert_close(second.logits, expected, mask[:, 6:])


@pytest.mark.parametrize("padding", ["none", "left", "gaps"])
@torch.no_grad()
def test_hidden_states_and_attentions(padding):
    original, model = decoder_pair("eager")
    ids, mask, positions = ids_mask_positions(padding)
    outputs = []
    for m in (original, model):
        first = m(ids[:, :6], attention_mask=mask[:, :6], position_ids=positions[:, :6])
        inside = {"output_attentions": True, "output_hidden_states": True, CACHE_FIELD: first[CACHE_FIELD]}
        outputs.append(m(ids[:, 6:], attention_mask=mask, position_ids=positions[:, 6:], **inside))
    expected, actual = outputs
    assert list(actual.keys()) == list(expected.keys())
    for a, e in zip(actual.hidden_states, expected.hidden_states, strict=True):
        assert_close(a, e, mask[:, 6:])
    for a, e in zip(actual.attentions, expected.attentions, strict=True):
        assert a.shape == (B, 4, S - 6, S)
        assert_close(a.transpose(1, 2), e.transpose(1, 2), mask[:, 6:])


@torch.no_grad()
def test_head_mask_on_a_cache():
    _, model = decoder_pair()
    ids, _, _ = ids_mask_positions("none")
    head_mask = (torch.rand(3, 4) < 0.5).float()
    expected = model(ids, head_mask=head_mask, use_cache=False).logits
    first = model(ids[:, :6], head_mask=head_mask)
    second = model(ids[:, 6:], head_mask=head_mask, **{CACHE_FIELD: first[CACHE_FIELD]})
    assert_close(torch.cat([first.logits, second.logits], dim=1), expected)


@pytest.mark.parametrize("encoder_padding", ["none", "left", "right", "gaps", "a row of nothing"])
@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_cross_attention(encoder_padding, padding, attention):
    original, model = decoder_pair(attention, add_cross_attention=True)
    ids, mask, positions = ids_mask_positions(padding)
    states = torch.randn(B, ENCODER_COLUMNS, 48)
    encoder_mask = torch.ones(B, ENCODER_COLUMNS, dtype=torch.long)
    if encoder_padding == "left":
        encoder_mask[1, :3] = 0
    elif encoder_padding == "right":
        encoder_mask[1, 3:] = 0
    elif encoder_padding == "gaps":
        encoder_mask[1, 3:5] = encoder_mask[2, 1] = 0
    elif encoder_padding == "a row of nothing":
        encoder_mask[1] = 0
    extra = {"encoder_hidden_states": states, "encoder_attention_mask": encoder_mask}
    expected = original(ids, attention_mask=mask, position_ids=positions, use_cache=False, **extra).logits
    for cuts in ([4, 5, 8], [1, 10], [9]):
        actual, cache = run_in_chunks(model, ids, mask, positions, cuts, **extra)
        assert_close(actual, expected, mask)
        assert isinstance(cache, EncoderDecoderCache)
        assert cache.cross_attention_cache.get_seq_length() == ENCODER_COLUMNS


@torch.no_grad()
def test_cross_attention_reads_the_cache_and_not_the_states():
    _, model = decoder_pair(add_cross_attention=True)
    ids, _, _ = ids_mask_positions("none")
    states = torch.randn(B, ENCODER_COLUMNS, 48)
    first = model(ids[:, :6], encoder_hidden_states=states)
    expected = model(ids[:, 6:], encoder_hidden_states=states, **{CACHE_FIELD: copy.deepcopy(first[CACHE_FIELD])}).logits
    actual = model(ids[:, 6:], encoder_hidden_states=torch.full_like(states, torch.nan), **{CACHE_FIELD: first[CACHE_FIELD]}).logits
    assert_close(actual, expected)
    legacy = bertfast.cache.objects.to_legacy(model(ids[:, :6], encoder_hidden_states=states)[CACHE_FIELD])
    out = model(ids[:, 6:], encoder_hidden_states=states, **{CACHE_FIELD: legacy})
    assert_close(out.logits, expected)
    assert [len(layer) for layer in out[CACHE_FIELD]] == [4, 4, 4]


@pytest.mark.parametrize("padded", [False, True])
def test_beams_of_a_prompt_do_not_copy_cross_attention(padded, monkeypatch):
    """transformers reorders the cache in every step. Cross-attention is copied once, when a prompt's beams are made."""
    decoder = decoder_pair(add_cross_attention=True)[0]
    encoder, _ = builders.pair("BertModel", seed=1, std=0.15, **GEOMETRY)
    original = EncoderDecoderModel(encoder=encoder, decoder=decoder).eval()
    model = bertfast.optimize(copy.deepcopy(original))
    cells: list[list[tuple[int, int]]] = []
    orders: list[list[int]] = []
    reorder = EncoderDecoderCache.reorder_cache

    def noted(cache, order):
        reorder(cache, order)
        orders.append(order.tolist())
        layers = cache.cross_attention_cache.layers
        cells.append([(t.data_ptr(), t._version) for layer in layers if isinstance(layer, GrowingLayer) for t in layer._buffers])

    mask = torch.ones(2, ENCODER_COLUMNS, dtype=torch.long)
    if padded:
        mask[0, 4:] = 0
    given = {
        "input_ids": torch.randint(1, V, mask.shape), "attention_mask": mask, "num_beams": 3, "max_new_tokens": 12,
        "decoder_start_token_id": 1, "pad_token_id": 0, "eos_token_id": [7, 8],
    }  # fmt: skip
    expected = original.generate(**given)
    monkeypatch.setattr(EncoderDecoderCache, "reorder_cache", noted)
    assert torch.equal(model.generate(**given), expected)
    assert orders[0] == [0, 0, 0, 3, 3, 3]
    assert any(order != sorted(order) for order in orders), "beams change places, or this shows nothing"
    assert len(cells[0]) == 6
    assert all(later == cells[0] for later in cells[1:])


@torch.no_grad()
def test_other_states_than_those_cached_are_an_error():
    _, model = decoder_pair(add_cross_attention=True)
    ids, _, _ = ids_mask_positions("none")
    first = model(ids[:, :6], encoder_hidden_states=torch.randn(B, ENCODER_COLUMNS, 48))
    with pytest.raises(ValueError, match="encoder_hidden_states"):
        model(ids[:, 6:], encoder_hidden_states=torch.randn(B, ENCODER_COLUMNS + 1, 48), **{CACHE_FIELD: first[CACHE_FIELD]})


@torch.no_grad()
def test_a_cache_without_cross_attention_has_it_computed_in_each_call():
    original, model = decoder_pair(add_cross_attention=True)
    ids, mask, positions = ids_mask_positions("left")
    states = torch.randn(B, ENCODER_COLUMNS, 48)
    expected = original(ids, attention_mask=mask, position_ids=positions, use_cache=False, encoder_hidden_states=states).logits
    actual, _ = run_in_chunks(model, ids, mask, positions, [5, 6], DynamicCache(), encoder_hidden_states=states)
    assert_close(actual, expected, mask)


@torch.no_grad()
def test_the_base_model_as_a_decoder():
    original, model = decoder_pair(kind="BertModel")
    ids, mask, positions = ids_mask_positions("left")
    expected = original(ids, attention_mask=mask, position_ids=positions, use_cache=False).last_hidden_state
    actual, _ = run_in_chunks(model, ids, mask, positions, [5, 6])
    assert_close(actual, expected, mask)
    hidden, plain = {"output_hidden_states": True}, {"return_dict": False}
    for options in ({}, hidden, {"use_cache": False}, plain, {**plain, **hidden}):
        ours, reference = model(ids, **options), original(ids, **options)
        assert len(ours) == len(reference)
        if options.get("return_dict", True):
            assert list(ours.keys()) == list(reference.keys())


@torch.no_grad()
def test_outputs_of_the_language_model_have_transformers_fields_in_its_order():
    original, model = decoder_pair()
    ids, _, _ = ids_mask_positions("none")
    for options in ({}, {"use_cache": False}, {"labels": ids}, {"output_hidden_states": True}, {"return_dict": False}):
        ours, reference = model(ids, **options), original(ids, **options)
        assert len(ours) == len(reference)
        if options.get("return_dict", True):
            assert list(ours.keys()) == list(reference.keys())


@torch.no_grad()
def test_crop_reorder_and_selection():
    original, model = decoder_pair()
    ids, _, _ = ids_mask_positions("none")
    order = torch.tensor([2, 0, 0])
    results = []
    for m in (original, model):
        cache = m(ids[:, :8])[CACHE_FIELD]
        logits = []
        cache.crop(-3)
        logits.append(m(ids[:, 6:8], **{CACHE_FIELD: cache}).logits)
        cache.reorder_cache(order)
        logits.append(m(ids[:, 8:9], **{CACHE_FIELD: cache}).logits)
        cache.batch_repeat_interleave(2)
        logits.append(m(ids[:, 9:10].repeat_interleave(2, 0), **{CACHE_FIELD: cache}).logits)
        cache.batch_select_indices(torch.tensor([5, 1]))
        logits.append(m(ids[:2, 10:11], **{CACHE_FIELD: cache}).logits)
        assert cache.get_seq_length() == 10
        cache.reset()
        logits.append(m(ids[:, :4], **{CACHE_FIELD: cache}).logits if cache.get_seq_length() == 0 else logits[0])
        results.append(logits)
    for expected, actual in zip(*results, strict=True):
        assert_close(actual, expected)


@torch.no_grad()
def test_views_of_a_cache_keep_their_values():
    """As in transformers, where each step makes new tensors."""
    _, model = decoder_pair()
    ids, _, _ = ids_mask_positions("none")
    cache = model(ids[:, :8])[CACHE_FIELD]
    model(ids[:, 8:9], **{CACHE_FIELD: cache})  # now there is spare capacity
    held = [(layer.keys, layer.values) for layer in cache.layers]
    copies = [(k.clone(), v.clone()) for k, v in held]
    twin = copy.deepcopy(cache)
    cache.crop(-4)
    model(torch.randint(0, V, (B, 6)), **{CACHE_FIELD: cache})
    for a, b in zip(held, copies, strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
    shallow = [copy.copy(layer) for layer in twin.layers]
    model(ids[:, 9:], **{CACHE_FIELD: twin})
    assert [layer.get_seq_length() for layer in shallow] == [9, 9, 9]
    assert all(torch.equal(layer.keys, k) for layer, (k, _) in zip(shallow, copies, strict=True))


@torch.no_grad()
def test_steps_do_not_copy_what_is_cached():
    """Capacity doubles when it runs out, so few of many steps change buffers."""
    _, model = decoder_pair()
    cache = model(torch.randint(0, V, (B, 1)))[CACHE_FIELD]
    addresses = set()
    for _ in range(23):
        model(torch.randint(0, V, (B, 1)), **{CACHE_FIELD: cache})
        addresses.add(cache.layers[0]._buffers[0].data_ptr())
    assert len(addresses) <= 5
    assert cache.layers[0]._buffers[0].shape[2] == model.config.max_position_embeddings


def test_inference_mode_and_grad_mode_share_a_cache():
    _, model = decoder_pair()
    ids, _, _ = ids_mask_positions("none")
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
    with torch.inference_mode():
        first = model(ids[:, :5])
    second = model(ids[:, 5:8], **{CACHE_FIELD: first[CACHE_FIELD]})
    with torch.no_grad():
        third = model(ids[:, 8:], **{CACHE_FIELD: second[CACHE_FIELD]})
    assert_close(torch.cat([first.logits, second.logits.detach(), third.logits], dim=1), expected)


def test_without_no_grad_results_agree_and_a_backward_is_right_or_refused():
    original, model = decoder_pair()
    ids, _, _ = ids_mask_positions("none")
    out, reference = model(ids), original(ids)
    assert_close(out.logits.detach(), reference.logits.detach())
    out.logits.square().mean().backward()
    reference.logits.square().mean().backward()
    for a, b in zip(model.parameters(), original.parameters(), strict=True):
        assert_close(a.grad, b.grad)
    step = model(ids[:, -1:], **{CACHE_FIELD: out[CACHE_FIELD]})
    assert step.logits.requires_grad
    with pytest.raises(RuntimeError, match="cache"):
        step.logits.sum().backward()


@pytest.mark.usefixtures("reference_path_allowed")
def test_a_learned_prefix_gets_its_gradient():
    original, model = decoder_pair()
    ids, _, _ = ids_mask_positions("none")
    grads = []
    torch.manual_seed(1)
    start = [torch.randn(B, 4, 2, 12) for _ in range(6)]
    for m in (original, model):
        m.requires_grad_(False)
        prefix = [t.clone().requires_grad_() for t in start]
        cache = DynamicCache([(prefix[2 * i], prefix[2 * i + 1]) for i in range(3)])
        m(ids, **{CACHE_FIELD: cache}).logits.square().mean().backward()
        grads.append([t.grad for t in prefix])
    for a, b in zip(*grads, strict=True):
        assert_close(a, b)


@pytest.mark.usefixtures("reference_path_allowed")
@torch.no_grad()
def test_an_encoder_with_a_cache_agrees_with_transformers():
    original, model = builders.pair("BertModel", std=0.15, **{**GEOMETRY, "num_hidden_layers": 2, "use_cache": True})
    prefix = [(torch.randn(B, 4, 2, 12), torch.randn(B, 4, 2, 12)) for _ in range(2)]
    ids = torch.randint(0, V, (B, 5))
    expected, actual = (m(ids, **{CACHE_FIELD: DynamicCache(prefix)}).last_hidden_state for m in (original, model))
    assert_close(actual, expected)


class TestErrors:
    """Raised before anything is computed: the cache is unchanged."""

    @pytest.fixture
    def filled(self):
        _, model = decoder_pair()
        with torch.no_grad():
            return model, model(torch.randint(0, V, (B, 20)))[CACHE_FIELD]

    def refused(self, filled, message, *args, **kwargs):
        model, cache = filled
        with pytest.raises(ValueError, match=message), torch.no_grad():
            model(*args, **{CACHE_FIELD: cache}, **kwargs)
        assert cache.get_seq_length() == 20
        with torch.no_grad():
            model(torch.randint(0, V, (B, 4)), **{CACHE_FIELD: cache})
        assert cache.get_seq_length() == 24

    def test_more_than_the_model_has_positions(self, filled):
        self.refused(filled, "max_position_embeddings", torch.randint(0, V, (B, 5)))

    def test_a_mask_of_the_new_tokens_only(self, filled):
        self.refused(filled, "attention_mask", torch.randint(0, V, (B, 2)), attention_mask=torch.ones(B, 2))

    def test_another_batch(self, filled):
        self.refused(filled, "batch", torch.randint(0, V, (B + 1, 2)))

    def test_an_id_outside_of_the_vocabulary(self, filled):
        self.refused(filled, "input_ids", torch.full((B, 1), V))

    def test_more_than_a_static_cache_holds(self):
        _, model = decoder_pair()
        cache = StaticCache(config=model.config, max_cache_len=4)
        with pytest.raises(ValueError, match="holds 4"), torch.no_grad():
            model(torch.randint(0, V, (B, 5)), **{CACHE_FIELD: cache})
        assert int(cache.get_seq_length()) == 0

    def test_a_cache_of_another_model(self):
        _, model = decoder_pair()
        cache = DynamicCache([(torch.randn(B, 4, 2, 12),) * 2] * 2)
        with pytest.raises(ValueError, match="layers"), torch.no_grad():
            model(torch.randint(0, V, (B, 2)), **{CACHE_FIELD: cache})

    def test_heads_of_another_model(self):
        _, model = decoder_pair()
        cache = DynamicCache([(torch.randn(B, 3, 2, 12),) * 2] * 3)
        with pytest.raises(ValueError, match="heads"), torch.no_grad():
            model(torch.randint(0, V, (B, 2)), **{CACHE_FIELD: cache})

    def test_something_that_is_no_cache(self):
        _, model = decoder_pair()
        with pytest.raises(ValueError, match=CACHE_FIELD), torch.no_grad():
            model(torch.randint(0, V, (B, 2)), **{CACHE_FIELD: [1, 2, 3]})

    def test_both_names_at_once(self):
        _, model = decoder_pair()
        with pytest.raises(ValueError, match="both"), torch.no_grad():
            model(torch.randint(0, V, (B, 2)), cache=DynamicCache(), past_key_values=DynamicCache())


@pytest.mark.parametrize("second", [None, "left", "full"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_later_call_may_pass_another_encoder_mask(attention, second):
    """The cache keeps cross-attention's keys and values of all columns, those that the first call masks too."""
    original, fast = decoder_pair(attention, add_cross_attention=True)
    states, ids = torch.randn(B, ENCODER_COLUMNS, 48), torch.randint(0, V, (B, 4))
    first = {"encoder_hidden_states": states, "encoder_attention_mask": builders.mask("right", B, ENCODER_COLUMNS)}
    mask = {} if second is None else {"encoder_attention_mask": builders.mask(second, B, ENCODER_COLUMNS)}
    results = []
    for model in (fast, original):
        with torch.no_grad():
            out = model(ids[:, :3], **first)
            results.append((model(ids[:, 3:], encoder_hidden_states=states, **mask, **{CACHE_FIELD: out[CACHE_FIELD]}), out[CACHE_FIELD]))
    (ours, cache), (theirs, expected) = results
    assert_close(ours.logits, theirs.logits)
    for a, b in zip(cache.cross_attention_cache.layers, expected.cross_attention_cache.layers, strict=True):
        assert_close(a.keys, b.keys)


@pytest.mark.parametrize("static", [False, True])
def test_a_mask_made_for_the_whole_generation_from_the_first_call_on(static):
    original, fast = decoder_pair()
    ids, mask = torch.randint(0, V, (B, 5)), torch.ones(B, 9, dtype=torch.long)
    mask[1, :2] = 0
    caches = [StaticCache(config=original.config, max_cache_len=12) if static else DynamicCache() for _ in range(2)]
    with torch.no_grad():
        for part in (ids[:, :3], ids[:, 3:4], ids[:, 4:]):
            ours, theirs = (model(part, attention_mask=mask, **{CACHE_FIELD: c}) for model, c in zip((fast, original), caches, strict=True))
            assert_close(ours.logits, theirs.logits)
