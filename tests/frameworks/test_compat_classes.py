"""The five compat classes with tensorflow and jax imported: arrays of a framework in, arrays of that framework out."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from bertfast.compat import arrays, flax, tf
from bertfast.compat.flax.weights import WeightSet
from compat import golden

tensorflow = pytest.importorskip("tensorflow", reason="TensorFlow is not installed: pip install 'bertfast[compat-test]'")
jax = pytest.importorskip("jax", reason="JAX is not installed: pip install 'bertfast[compat-test]'")
jnp = jax.numpy

MODEL_OF_CLASS = {
    "TFBertForTokenClassification": "tf_tokcls",
    "TFBertForQuestionAnswering": "tf_qa",
    "FlaxBertModel": "flax_model",
    "FlaxBertForPreTraining": "flax_pretraining",
    "FlaxBertForCausalLM": "flax_causal",
}
ARRAY_TYPES = {
    "numpy": (np.asarray, np.ndarray),
    "torch": (torch.from_numpy, torch.Tensor),
    "tensorflow": (tensorflow.constant, tensorflow.Tensor),
    "jax": (jnp.asarray, jax.Array),
}
IDS = np.array([[2, 5, 7, 1, 9], [3, 4, 6, 0, 0]], np.int32)
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.int32)


def load(name, **kwargs):
    return getattr(tf if name.startswith("TF") else flax, name).from_pretrained(golden.MODELS / MODEL_OF_CLASS[name], **kwargs)


def leaves(value):
    if isinstance(value, (tuple, list)):
        return [leaf for item in value for leaf in leaves(item)]
    return [leaf for item in value.values() for leaf in leaves(item)] if isinstance(value, dict) else [value]


def plain(array):
    return np.asarray(array.float() if isinstance(array, torch.Tensor) else array).astype(np.float64)


@pytest.mark.parametrize("array_type", ARRAY_TYPES)
@pytest.mark.parametrize("name", MODEL_OF_CLASS)
def test_outputs_have_the_array_type_of_the_inputs(name, array_type):
    convert, wanted = ARRAY_TYPES[array_type]
    model = load(name)
    given = {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": np.zeros_like(IDS)}
    flags = {"output_hidden_states": True, "output_attentions": True}
    expected = model(**given, **flags)
    got = model(**{key: convert(value) for key, value in given.items()}, **flags)
    assert list(got) == list(expected)
    assert all(isinstance(leaf, wanted) for leaf in leaves(got))
    for mine, theirs in zip(leaves(got), leaves(expected), strict=True):
        np.testing.assert_array_equal(plain(mine), plain(theirs))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", [name for name in MODEL_OF_CLASS if name.startswith("Flax")])
def test_the_compute_dtype_is_the_dtype_of_the_outputs(name, dtype):
    out = load(name, dtype=getattr(jnp, dtype))(jnp.asarray(IDS))
    assert {leaf.dtype for leaf in leaves(out)} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("name", [name for name in MODEL_OF_CLASS if name.startswith("TF")])
def test_losses_are_tensors(name):
    labels = (
        {"labels": tensorflow.constant(IDS % 5)}
        if name == "TFBertForTokenClassification"
        else {"start_positions": tensorflow.constant([0, 1]), "end_positions": tensorflow.constant([1, 2])}
    )
    loss = load(name)(tensorflow.constant(IDS), **labels).loss
    assert isinstance(loss, tensorflow.Tensor)
    assert loss.shape == ((1,) if name == "TFBertForTokenClassification" else (2,))
    assert np.isfinite(float(tensorflow.math.reduce_mean(loss)))


@pytest.mark.parametrize("given", [[tensorflow.constant(IDS), tensorflow.constant(MASK)], {"input_ids": tensorflow.constant(IDS)}])
def test_tensors_in_a_list_or_dict(given):
    assert isinstance(load("TFBertForQuestionAnswering")(given).start_logits, tensorflow.Tensor)


def test_an_output_shares_the_memory_of_the_kernels_result(monkeypatch):
    given = []

    def watched(tensor, array_type):
        given.append(tensor.data_ptr())
        return inner(tensor, array_type)

    inner = arrays.from_torch
    monkeypatch.setattr(arrays, "from_torch", watched)
    out = load("FlaxBertModel")(jnp.asarray(IDS))
    assert [out.last_hidden_state.unsafe_buffer_pointer(), out.pooler_output.unsafe_buffer_pointer()] == given


# Inside a trace


@pytest.mark.parametrize("name", MODEL_OF_CLASS)
@pytest.mark.parametrize("compiled", [False, True])
def test_inside_tf_function_raises(name, compiled):
    model = load(name)
    traced = tensorflow.function(lambda ids: model(ids), jit_compile=compiled)
    with pytest.raises(ValueError, match=r"called inside tf\.function"):
        traced(tensorflow.constant(IDS))
    with pytest.raises(ValueError, match=r"called inside tf\.function"):  # without a traced argument
        tensorflow.function(lambda: model(IDS))()
    outside = tensorflow.py_function(lambda ids: leaves(model(ids))[0], [tensorflow.constant(IDS)], tensorflow.float32)
    np.testing.assert_array_equal(outside, leaves(model(IDS))[0])


@pytest.mark.parametrize("name", MODEL_OF_CLASS)
@pytest.mark.parametrize("transform", [jax.jit, jax.vmap, jax.make_jaxpr])
def test_inside_a_jax_transform_raises(name, transform):
    model = load(name)
    with pytest.raises(ValueError, match=r"called inside jax\.jit"):
        transform(lambda ids: leaves(model(ids))[0])(jnp.asarray(IDS)[:, None])
    with pytest.raises(ValueError, match=r"called inside jax\.jit"):
        jax.jit(lambda: leaves(model(IDS))[0])()


def test_pure_callback_as_the_message_suggests():
    model = load("FlaxBertModel")
    expected = model(IDS).last_hidden_state
    like = jax.ShapeDtypeStruct(expected.shape, expected.dtype)
    called = jax.jit(lambda ids: jax.pure_callback(lambda x: np.asarray(model(np.asarray(x)).last_hidden_state), like, ids))
    np.testing.assert_array_equal(called(jnp.asarray(IDS)), expected)


def test_generate_and_a_gradient_of_params_raise():
    model = load("FlaxBertForCausalLM")
    with pytest.raises(ValueError, match=r"called inside jax\.jit"):
        jax.jit(lambda ids: model.generate(ids, max_length=8).sequences)(jnp.asarray(IDS))
    params = jax.tree_util.tree_map(jnp.asarray, model.params)
    with pytest.raises(ValueError, match=r"called inside jax\.jit"):
        jax.grad(lambda p: model(IDS, params=p).logits.sum())(params)


def test_a_symbolic_keras_tensor_raises():
    keras = pytest.importorskip("keras")
    with pytest.raises(ValueError, match="symbolic"):
        load("TFBertForTokenClassification")(keras.Input((5,), dtype="int32"))


# Params


@pytest.fixture
def conversions(monkeypatch):
    made = []
    inner = WeightSet.of_leaves
    monkeypatch.setattr(WeightSet, "of_leaves", staticmethod(lambda *args: (made.append(1), inner(*args))[1]))
    return made


def test_jax_params_are_converted_once_per_tree(conversions):
    model = load("FlaxBertModel")
    own = model(IDS).last_hidden_state
    params = jax.tree_util.tree_map(jnp.asarray, model.params)
    assert jax.tree_util.tree_structure(params) == jax.tree_util.tree_structure(model.params)
    for _ in range(3):
        np.testing.assert_allclose(model(IDS, params=params).last_hidden_state, own, atol=1e-6)
    assert len(conversions) == 1
    doubled = jax.tree_util.tree_map(lambda leaf: leaf * 2, params)
    changed = model(IDS, params=doubled).last_hidden_state
    assert np.abs(changed - own).max() > 0.1
    np.testing.assert_array_equal(model(IDS, params=params).last_hidden_state, model(IDS, params=params).last_hidden_state)
    np.testing.assert_array_equal(model(IDS, params=doubled).last_hidden_state, changed)
    assert len(conversions) == 2


def test_numpy_params_are_converted_at_each_call(conversions):
    model = load("FlaxBertModel")
    own = model(IDS).last_hidden_state
    params = jax.tree_util.tree_map(np.array, model.params)  # writable copies
    np.testing.assert_allclose(model(IDS, params=params).last_hidden_state, own, atol=1e-6)
    params["embeddings"]["word_embeddings"]["embedding"][:] *= 2
    assert np.abs(model(IDS, params=params).last_hidden_state - own).max() > 0.01
    assert len(conversions) == 2
    np.testing.assert_array_equal(model(IDS).last_hidden_state, own)


def test_params_can_be_set_to_jax_arrays():
    model = load("FlaxBertForPreTraining")
    expected = model(IDS)
    other = flax.FlaxBertForPreTraining(model.config, seed=3)
    assert np.abs(other(IDS).prediction_logits - expected.prediction_logits).max() > 0.1
    other.params = jax.tree_util.tree_map(jnp.asarray, model.params)
    np.testing.assert_allclose(other(IDS).prediction_logits, expected.prediction_logits, atol=1e-5)
    assert isinstance(other.params["bert"]["pooler"]["dense"]["kernel"], jax.Array)


def test_to_bf16_and_its_mask_on_jax_arrays():
    model = load("FlaxBertModel")
    params = jax.tree_util.tree_map(jnp.asarray, model.params)
    cast = model.to_bf16(params)
    assert {leaf.dtype for leaf in jax.tree_util.tree_leaves(cast)} == {jnp.dtype("bfloat16")}
    mask = jax.tree_util.tree_map_with_path(lambda path, _: "LayerNorm" not in jax.tree_util.keystr(path), params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(model.to_fp16(params, mask)):
        assert leaf.dtype == ("float32" if "LayerNorm" in jax.tree_util.keystr(path) else "float16")
    assert {leaf.dtype for leaf in jax.tree_util.tree_leaves(model.to_fp32(cast))} == {jnp.dtype("float32")}
    assert model(jnp.asarray(IDS), params=cast).last_hidden_state.dtype == jnp.float32


def test_a_model_without_weights_takes_jax_params():
    model, params = load("FlaxBertForCausalLM", _do_init=False)
    expected = load("FlaxBertForCausalLM")(IDS).logits
    with pytest.raises(ValueError, match="_do_init=False"):
        _ = model.params
    got = model(jnp.asarray(IDS), params=jax.tree_util.tree_map(jnp.asarray, params)).logits
    np.testing.assert_allclose(got, expected, atol=1e-5)


# Cache and generation


def test_a_cache_is_a_tree_of_jax_arrays_and_functional():
    model = load("FlaxBertForCausalLM")
    empty = model.init_cache(2, 8)
    first = model(jnp.asarray(IDS[:, :1]), past_key_values=empty)
    index = first.past_key_values["bert"]["encoder"]["layer"]["0"]["attention"]["self"]
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree_util.tree_leaves(first.past_key_values))
    assert int(index["cache_index"]) == 1
    step = {"position_ids": jnp.ones((2, 1), jnp.int32), "past_key_values": first.past_key_values}
    second = model(jnp.asarray(IDS[:, 1:2]), **step).logits
    np.testing.assert_array_equal(model(jnp.asarray(IDS[:, 1:2]), **step).logits, second)  # the older handle is unchanged
    copied = jax.tree_util.tree_map(lambda leaf: leaf + 0, first.past_key_values)  # a tree of the caller's own arrays
    np.testing.assert_allclose(model(jnp.asarray(IDS[:, 1:2]), **{**step, "past_key_values": copied}).logits, second, atol=1e-5)
    whole = model(jnp.asarray(IDS[:, :2])).logits[:, -1:]
    np.testing.assert_allclose(second, whole, atol=2e-5)


@pytest.mark.parametrize("options", [{}, {"do_sample": True}, {"num_beams": 3}])
def test_generate_returns_jax_sequences(options):
    model = load("FlaxBertForCausalLM")
    settings = {"max_length": 9, "pad_token_id": 0, **options}
    expected = model.generate(IDS[:, :3], prng_key=7, **settings).sequences
    if "do_sample" in options:
        settings["prng_key"] = jax.random.PRNGKey(7)
    sequences = model.generate(jnp.asarray(IDS[:, :3]), **settings).sequences
    assert isinstance(sequences, jax.Array)
    np.testing.assert_array_equal(sequences, expected)


def test_neither_is_imported_by_bertfast():
    code = (
        "import sys, numpy as np\n"
        "import bertfast\n"
        "from bertfast.compat import flax, tf\n"
        f"tf.TFBertForQuestionAnswering.from_pretrained({str(golden.MODELS / 'tf_qa')!r})(np.ones((1, 3), int))\n"
        f"model = flax.FlaxBertForCausalLM.from_pretrained({str(golden.MODELS / 'flax_causal')!r})\n"
        "model(np.ones((1, 3), int), past_key_values=model.init_cache(1, 3), attention_mask=np.ones((1, 3), int))\n"
        "model.generate(np.ones((1, 3), int), max_length=6, pad_token_id=0)\n"
        "print(*{'tensorflow', 'jax', 'keras', 'flax'} & set(sys.modules))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert result.stdout.strip() == ""
