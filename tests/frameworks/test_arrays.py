"""TensorFlow and JAX arrays to torch tensors and back: shared memory wherever DLPack supports the dtype."""

import numpy as np
import pytest
import torch

from bertfast.compat import arrays
from bertfast.compat.arrays import ArrayType

tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed: pip install 'bertfast[compat-test]'")
jax = pytest.importorskip("jax", reason="JAX is not installed: pip install 'bertfast[compat-test]'")

FLOATS, INTEGERS = ["float32", "float16", "bfloat16"], ["int32", "uint8", "int8"]
SHAPES = [(3, 5), (2, 1, 4)]


def address(array):
    if isinstance(array, jax.Array):
        return array.unsafe_buffer_pointer()
    return torch.utils.dlpack.from_dlpack(tf.experimental.dlpack.to_dlpack(array)).data_ptr()


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, "int64", "bool"])
def test_a_tensorflow_tensor_is_shared(dtype):
    given = tf.cast(tf.constant([[0, 1, 3], [5, 0, 1]]), dtype)
    read = arrays.to_torch(given, "x")
    assert (read.dtype, read.data_ptr()) == (getattr(torch, dtype), address(given))
    assert read.float().tolist() == tf.cast(given, "float32").numpy().tolist()


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, "bool"])
def test_a_jax_array_is_shared(dtype):
    given = jax.numpy.array([[0, 1, 3], [5, 0, 1]]).astype(dtype)
    read = arrays.to_torch(given, "x")
    assert (read.dtype, read.data_ptr()) == (getattr(torch, dtype), address(given))
    assert read.float().tolist() == np.asarray(given).astype(np.float32).tolist()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, "bool"])
@pytest.mark.parametrize("array_type", [ArrayType.TF, ArrayType.JAX])
def test_a_result_is_shared(array_type, dtype, shape):
    tensor = torch.arange(torch.Size(shape).numel()).reshape(shape).to(getattr(torch, dtype))
    given = arrays.from_torch(tensor, array_type)
    assert isinstance(given, tf.Tensor if array_type is ArrayType.TF else jax.Array)
    assert np.dtype(given.dtype if array_type is ArrayType.JAX else given.dtype.as_numpy_dtype).name == dtype
    assert (tuple(given.shape), address(given)) == (shape, tensor.data_ptr())


@pytest.mark.parametrize("shape", [(), (1,), (0, 3)])
@pytest.mark.parametrize("array_type", [ArrayType.TF, ArrayType.JAX])
def test_scalars_and_empty_arrays(array_type, shape):
    given = arrays.from_torch(torch.full(shape, 2.5), array_type)
    np.testing.assert_array_equal(np.asarray(given), np.full(shape, 2.5, np.float32))


@pytest.mark.parametrize("dtype", [*FLOATS, "int32"])
def test_a_jax_result_is_placed_as_by_a_dlpack_import(dtype):
    tensor = torch.arange(6).reshape(2, 3).to(getattr(torch, dtype))
    mine, imported = arrays.from_torch(tensor, ArrayType.JAX), jax.dlpack.from_dlpack(tensor)
    for name in ("shape", "dtype", "weak_type", "committed", "sharding"):
        assert getattr(mine, name) == getattr(imported, name), name


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(12.0).reshape(3, 4).T,
        torch.arange(12.0).reshape(3, 4)[:, 1:3],
        torch.arange(100.0)[1:],  # not aligned as JAX requires
        torch.arange(4.0).requires_grad_(),
        torch.arange(4),  # int64, which is int32 in JAX by default
        torch.arange(4.0, dtype=torch.float64),
        torch.arange(12).to(torch.bfloat16).reshape(3, 4).T,
    ],
)
def test_memory_that_jax_cannot_share_is_copied(tensor):
    given = arrays.from_torch(tensor, ArrayType.JAX)
    assert isinstance(given, jax.Array)
    np.testing.assert_array_equal(np.asarray(given).astype(np.float64), tensor.detach().double().numpy())


@pytest.mark.parametrize("guard", ["disallow", "disallow_explicit"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_result_is_allowed_under_a_transfer_guard(guard, dtype):
    tensor = torch.arange(6).reshape(2, 3).to(getattr(torch, dtype))
    with jax.transfer_guard(guard):
        given = arrays.from_torch(tensor, ArrayType.JAX)
    assert address(given) == tensor.data_ptr()
    np.testing.assert_array_equal(np.asarray(given).astype(np.float32), tensor.float().numpy())


def test_a_result_made_during_tracing_is_an_array_and_no_tracer():
    made = []

    def traced(x):
        made.append(arrays.from_torch(torch.arange(3.0), ArrayType.JAX))
        return x + made[0]

    assert jax.jit(traced)(jax.numpy.ones(3)).tolist() == [1.0, 2.0, 3.0]
    assert made[0].tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("dtype", ["int32", "uint32", "int16", "uint8", "bool", "float32", "bfloat16"])
def test_jax_ids_and_masks_are_copied(dtype):
    given = jax.numpy.array([[0, 1, 3], [5, 0, 1]]).astype(dtype)
    read = arrays.to_torch(arrays.jax_to_numpy(given, torch.device("cpu")), "x")
    assert read.dtype is {"int32": torch.int64, "uint32": torch.int64}.get(dtype, getattr(torch, dtype))
    expected = np.asarray(given).astype(np.float32).tolist()
    assert read.float().tolist() == expected
    read.zero_()
    assert np.asarray(given).astype(np.float32).tolist() == expected


def test_jax_to_numpy_returns_other_values_as_they_are():
    for given in (tf.constant([1]), np.zeros(1), torch.zeros(1)):
        assert arrays.jax_to_numpy(given, torch.device("cpu")) is given
    given = jax.numpy.zeros(1)
    assert arrays.jax_to_numpy(given, torch.device("cuda")) is given


def test_a_result_outlives_the_tensor_it_came_from():
    for array_type in (ArrayType.TF, ArrayType.JAX):
        given = arrays.from_torch(torch.arange(1000.0), array_type)
        others = [torch.full((1000,), -1.0) for _ in range(100)]  # would reuse the memory if it were freed
        assert np.asarray(given).tolist() == list(range(1000))
        assert len(others) == 100


def test_the_array_type_of_a_call_is_that_of_its_first_array_that_is_not_numpys():
    ids = np.zeros((1, 2), np.int64)
    assert arrays.array_type_of((ids, None, True)) is ArrayType.NUMPY
    assert arrays.array_type_of((None, ids, jax.numpy.asarray(ids), torch.from_numpy(ids))) is ArrayType.JAX
    assert arrays.array_type_of((tf.constant(ids), jax.numpy.asarray(ids))) is ArrayType.TF
    assert arrays.array_type_of((tf.Variable(ids),)) is ArrayType.TF


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_dtypes_of_every_library(name):
    for dtype in (name, getattr(torch, name), getattr(tf, name), getattr(jax.numpy, name), jax.numpy.dtype(name)):
        assert arrays.torch_dtype(dtype) is getattr(torch, name)
    for wrong in (jax.numpy.int32, tf.int64, "int8"):
        with pytest.raises(TypeError, match="dtype: got"):
            arrays.torch_dtype(wrong)
