"""TensorFlow's and JAX's arrays as torch tensors and back: the same memory wherever DLPack has the dtype."""

import numpy as np
import pytest
import torch

from bertfast.compat import arrays
from bertfast.compat.arrays import Kind

tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed: pip install 'bertfast[compat-test]'")
jax = pytest.importorskip("jax", reason="JAX is not installed: pip install 'bertfast[compat-test]'")

FLOATS, INTEGERS = ["float32", "float16", "bfloat16"], ["int32", "uint8", "int8"]
SHAPES = [(3, 5), (2, 1, 4)]


def address(array):
    if isinstance(array, jax.Array):
        return array.unsafe_buffer_pointer()
    return torch.utils.dlpack.from_dlpack(tf.experimental.dlpack.to_dlpack(array)).data_ptr()


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, "int64", "bool"])
def test_a_tensor_of_tensorflow_is_read_where_it_lies(dtype):
    given = tf.cast(tf.constant([[0, 1, 3], [5, 0, 1]]), dtype)
    read = arrays.to_torch(given, "x")
    assert (read.dtype, read.data_ptr()) == (getattr(torch, dtype), address(given))
    assert read.float().tolist() == tf.cast(given, "float32").numpy().tolist()


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, "bool"])
def test_an_array_of_jax_is_read_where_it_lies(dtype):
    given = jax.numpy.array([[0, 1, 3], [5, 0, 1]]).astype(dtype)
    read = arrays.to_torch(given, "x")
    assert (read.dtype, read.data_ptr()) == (getattr(torch, dtype), address(given))
    assert read.float().tolist() == np.asarray(given).astype(np.float32).tolist()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, "bool"])
@pytest.mark.parametrize("kind", [Kind.TF, Kind.JAX])
def test_a_result_is_handed_out_where_it_lies(kind, dtype, shape):
    tensor = torch.arange(torch.Size(shape).numel()).reshape(shape).to(getattr(torch, dtype))
    given = arrays.from_torch(tensor, kind)
    assert isinstance(given, tf.Tensor if kind is Kind.TF else jax.Array)
    assert np.dtype(given.dtype if kind is Kind.JAX else given.dtype.as_numpy_dtype).name == dtype
    assert (tuple(given.shape), address(given)) == (shape, tensor.data_ptr())


@pytest.mark.parametrize("shape", [(), (1,), (0, 3)])
@pytest.mark.parametrize("kind", [Kind.TF, Kind.JAX])
def test_scalars_and_arrays_of_nothing_come_back_too(kind, shape):
    given = arrays.from_torch(torch.full(shape, 2.5), kind)
    np.testing.assert_array_equal(np.asarray(given), np.full(shape, 2.5, np.float32))


def test_a_result_outlives_the_tensor_it_came_from():
    for kind in (Kind.TF, Kind.JAX):
        given = arrays.from_torch(torch.arange(1000.0), kind)
        others = [torch.full((1000,), -1.0) for _ in range(100)]  # would take the memory if it were free
        assert np.asarray(given).tolist() == list(range(1000))
        assert len(others) == 100


def test_the_kind_of_a_call_is_that_of_its_first_array_that_is_not_numpys():
    ids = np.zeros((1, 2), np.int64)
    assert arrays.kind_of((ids, None, True)) is Kind.NUMPY
    assert arrays.kind_of((None, ids, jax.numpy.asarray(ids), torch.from_numpy(ids))) is Kind.JAX
    assert arrays.kind_of((tf.constant(ids), jax.numpy.asarray(ids))) is Kind.TF
    assert arrays.kind_of((tf.Variable(ids),)) is Kind.TF


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_dtype_may_be_anybodys(name):
    for dtype in (name, getattr(torch, name), getattr(tf, name), getattr(jax.numpy, name), jax.numpy.dtype(name)):
        assert arrays.torch_dtype(dtype) is getattr(torch, name)
    for wrong in (jax.numpy.int32, tf.int64, "int8"):
        with pytest.raises(TypeError, match="dtype: got"):
            arrays.torch_dtype(wrong)
