"""Behaviour of the original classes beyond the recorded cases; each line was checked against 4.37.2."""

import numpy as np
import pytest

from bertfast.compat import flax, tf
from compat import golden

IDS = np.array([[2, 5, 7, 1, 9], [3, 4, 6, 8, 1]])
MASK = np.array([[1, 1, -1, 1, 0], [-1, 1, 1, 2, 1]])


def load(cls, model, **kwargs):
    return cls.from_pretrained(golden.MODELS / model, keep_padding=True, **kwargs)


def test_a_negative_mask_value_masks_in_an_encoder_and_not_in_a_decoder():
    encoder, decoder = load(flax.FlaxBertModel, "flax_model"), load(flax.FlaxBertForCausalLM, "flax_causal")
    np.testing.assert_array_equal(
        encoder(IDS, MASK).last_hidden_state, encoder(IDS, (MASK > 0).astype(np.int32)).last_hidden_state
    )  # fmt: skip
    np.testing.assert_array_equal(decoder(IDS, MASK).logits, decoder(IDS, (MASK != 0).astype(np.int32)).logits)
    assert np.abs(decoder(IDS, MASK).logits - decoder(IDS, (MASK > 0).astype(np.int32)).logits).max() > 1e-2


def test_a_negative_mask_value_does_not_mask_on_a_cache():
    model = load(flax.FlaxBertForCausalLM, "flax_causal")

    def prefilled(mask):
        return model(IDS, mask, past_key_values=model.init_cache(2, 5)).logits

    np.testing.assert_array_equal(prefilled(MASK), prefilled((MASK != 0).astype(np.int32)))


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint8, np.uint16, np.uint32, np.bool_, np.float32])
@pytest.mark.parametrize("name", ["input_ids", "token_type_ids", "position_ids"])
def test_tf_accepts_only_int32_and_int64_ids(name, dtype):
    model = load(tf.TFBertForTokenClassification, "tf_tokcls")
    given = {"input_ids": IDS, "token_type_ids": IDS % 2, "position_ids": IDS}
    model(**given)
    with pytest.raises(ValueError, match=f"{name}: got .*expected int32 or int64"):
        model(**{**given, name: given[name].astype(dtype)})


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint8, np.uint16, np.uint32, np.int64, np.float32, np.float64])
def test_flax_casts_ids_of_every_dtype(dtype):
    model = load(flax.FlaxBertModel, "flax_model")
    want = model(IDS, MASK, IDS % 2, IDS).last_hidden_state
    np.testing.assert_array_equal(model(*(x.astype(dtype) for x in (IDS, np.maximum(MASK, 0), IDS % 2, IDS))).last_hidden_state, want)


def test_ids_beyond_int32_wrap_in_flax():
    model = load(flax.FlaxBertModel, "flax_model")
    np.testing.assert_array_equal(model(IDS + 2**32).last_hidden_state, model(IDS).last_hidden_state)
    np.testing.assert_array_equal(model(IDS, MASK + 2**32).last_hidden_state, model(IDS, MASK).last_hidden_state)


def test_a_tf_decoder_refuses_a_bool_mask():
    mask = MASK != 0
    load(tf.TFBertForTokenClassification, "tf_tokcls")(IDS, mask)
    with pytest.raises(ValueError, match="attention_mask: got bool"):
        load(tf.TFBertForTokenClassification, "tf_tokcls", is_decoder=True)(IDS, mask)


def test_a_single_label_has_a_loss_for_rows_of_one_token():
    model = load(tf.TFBertForTokenClassification, "tf_tokcls_n1")
    loss = model(IDS[:, :1], labels=np.zeros((2, 1), np.int64)).loss
    assert (loss.shape, loss.tolist()) == ((1,), [0.0])
    with pytest.raises(ValueError, match="num_labels is 1"):
        model(IDS[:, :2], labels=np.zeros((2, 2), np.int64))


def test_arrays_that_torch_cannot_share_are_copied():
    model = load(flax.FlaxBertModel, "flax_model")
    want = model(IDS).last_hidden_state
    backwards = np.ascontiguousarray(IDS[:, ::-1])[:, ::-1]
    swapped = IDS.astype(IDS.dtype.newbyteorder())
    frozen = IDS.copy()
    frozen.flags.writeable = False
    for ids in (backwards, swapped, frozen, np.asfortranarray(IDS), np.repeat(IDS, 2, axis=1)[:, ::2]):
        np.testing.assert_array_equal(model(ids).last_hidden_state, want)


def test_a_flax_models_key_is_that_of_its_seed():
    model, params = flax.FlaxBertModel.from_pretrained(golden.MODELS / "flax_model", _do_init=False, seed=5)
    assert model.key.tolist() == [0, 5]
    fresh = model.init_weights(model.key, model.input_shape)
    assert fresh.keys() == params.keys()
    assert np.abs(model(IDS, params=fresh).last_hidden_state - model(IDS, params=params).last_hidden_state).max() > 0.1


@pytest.mark.parametrize("cls", [flax.FlaxBertModel, flax.FlaxBertForCausalLM])
@pytest.mark.parametrize("shape", [(2, 5), (1, 5), (2, 1), (1, 1), (5,)])
def test_a_mask_of_ones_has_no_effect(shape, cls):
    model = load(cls, "flax_model" if cls is flax.FlaxBertModel else "flax_causal")
    want = model(IDS)[0]
    for dtype in (np.int8, np.int32, np.int64, np.bool_, np.float32):
        np.testing.assert_allclose(model(IDS, np.ones(shape, dtype))[0], want, atol=1e-5)


def test_a_mask_value_that_wraps_below_zero_masks():
    model = load(flax.FlaxBertModel, "flax_model")
    nothing = model(IDS, np.zeros_like(IDS)).last_hidden_state
    np.testing.assert_array_equal(model(IDS, np.full_like(IDS, 2**31)).last_hidden_state, nothing)
    assert np.abs(nothing - model(IDS).last_hidden_state).max() > 1e-2


@pytest.mark.parametrize(("cls", "model"), [(flax.FlaxBertModel, "flax_model"), (tf.TFBertForTokenClassification, "tf_tokcls")])
def test_an_array_changed_between_calls_is_read_again_and_not_modified(cls, model):
    model, ids, mask = load(cls, model), IDS.copy(), np.ones_like(IDS)
    first = [model(ids, attention_mask=mask)[0] for _ in range(3)][-1]
    kept = first.copy()
    ids[:] = IDS[::-1]
    np.testing.assert_array_equal(model(ids, attention_mask=mask)[0], kept[::-1])
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(ids, IDS[::-1])
