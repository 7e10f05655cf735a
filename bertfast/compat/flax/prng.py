"""JAX's counter-based random numbers in NumPy: a seed draws the same numbers as under 4.37.

Threefry-2x32 with 20 rounds (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), used as by jax.random with
jax_threefry_partitionable off, the default until JAX 0.5.
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

U32 = np.uint32
Key: TypeAlias = npt.NDArray[np.uint32]  # [2]
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def read_key(key: object, name: str) -> Key:
    """uint32 [2] of a seed, a raw key (uint32 [2]) or a key of jax.random.key. Raises TypeError, naming `name`, for anything else."""
    if isinstance(key, (int, np.integer)):
        return np.array([(int(key) >> 32) & 0xFFFFFFFF, int(key) & 0xFFFFFFFF], U32)
    if hasattr(key, "dtype") and "key<" in str(key.dtype):
        from jax.random import key_data  # the caller has a JAX key, so JAX is imported

        key = key_data(key)
    try:
        raw = np.asarray(key)
    except Exception as error:
        raise TypeError(f"{name}: got {type(key).__name__}, expected a seed or a key of jax.random") from error
    if raw.dtype.kind not in "ui" or raw.shape != (2,):
        raise TypeError(f"{name}: got {raw.dtype} of shape {raw.shape}, expected a seed or a key of jax.random (uint32 [2])")
    return raw.astype(U32)


def seed_of(key: Key) -> int:
    """The key as one 64-bit integer."""
    return (int(key[0]) << 32) | int(key[1])


def threefry(key: Key, x: npt.NDArray[np.uint32], y: npt.NDArray[np.uint32]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """The block cipher on counters x and y, uint32 arrays of one shape."""
    schedule = (key[0], key[1], key[0] ^ key[1] ^ U32(0x1BD11BDA))
    with np.errstate(over="ignore"):  # additions are modulo 2**32
        x, y = x + schedule[0], y + schedule[1]
        for block in range(5):
            for turn in _ROTATIONS[block % 2]:
                x = x + y
                y = ((y << U32(turn)) | (y >> U32(32 - turn))) ^ x
            x, y = x + schedule[(block + 1) % 3], y + schedule[(block + 2) % 3] + U32(block + 1)
    return x, y


def bits(key: Key, count: int) -> npt.NDArray[np.uint32]:
    """`count` random uint32."""
    counters = np.arange(count + count % 2, dtype=U32)
    if count % 2:
        counters[-1] = 0
    half = len(counters) // 2
    return np.concatenate(threefry(key, counters[:half], counters[half:]))[:count]


def split(key: Key) -> tuple[Key, Key]:
    """Two new keys, as jax.random.split(key)."""
    keys = bits(key, 4).reshape(2, 2)
    return keys[0], keys[1]


def gumbel(key: Key, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Standard Gumbel noise, float32."""
    tiny = np.finfo(np.float32).tiny
    ones = (bits(key, int(np.prod(shape))) >> U32(9)) | U32(0x3F800000)  # mantissas of floats in [1, 2)
    uniform = np.maximum((ones.view(np.float32) - np.float32(1)) * (np.float32(1) - tiny) + tiny, tiny)
    return (-np.log(-np.log(uniform))).reshape(shape)
