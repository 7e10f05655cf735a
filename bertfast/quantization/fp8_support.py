"""Where fp8 runs: which GPUs and dtypes."""

from functools import cache

import torch

from bertfast import ops
from bertfast.ops.fp8 import GROUP_SIZE, Fp8Rows, Fp8Weight, Scales

LEAST_CAPABILITY = (8, 9)


def capability(device: torch.device) -> tuple[int, int] | None:
    """The compute capability of a CUDA device; None for any other."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def why_device_unsupported(device: torch.device) -> str | None:
    """Why fp8 does not run there; None where it does."""
    found = capability(device)
    wanted = "fp8 needs an NVIDIA GPU of compute capability 8.9 or later (Ada, Hopper, Blackwell)"
    if found is None:
        return f"it is on {device}, and {wanted}; move the model to one first"
    if found < LEAST_CAPABILITY:
        name = torch.cuda.get_device_name(device)
        return f"{name} has compute capability {found[0]}.{found[1]}, and {wanted}; use dtype=torch.bfloat16 here"
    return None


def groups_supported(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch's scaled product takes a scale for every 128 columns of a row: on Hopper alone, with cuBLAS of CUDA 12.9."""
    found = capability(device)
    return found is not None and found[0] == 9 and why_no_product(device, dtype, "group") is None


@cache
def why_no_product(device: torch.device, dtype: torch.dtype, scaled_by: Scales) -> str | None:
    """Why torch has no scaled product of this kind; None where it has. Depends on the chip, cuBLAS and torch: found by one trial."""
    K, F = 2 * GROUP_SIZE, 16
    ones = torch.ones(F, K, device=device).to(torch.float8_e4m3fn)
    scales = torch.ones(K // GROUP_SIZE if scaled_by == "group" else 1, F, device=device)
    try:
        out = ops.fp8_linear(Fp8Rows(F, ones, scales, dtype), [Fp8Weight(ones, scales)], [None])
    except (RuntimeError, ValueError) as error:
        return str(error).strip().splitlines()[0]
    return None if isinstance(out, torch.Tensor) and bool((out == K).all()) else "its result is wrong"
