"""Devices and dtypes as users name them: in arguments and on the command line."""

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def read_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """torch's dtype for a name in DTYPES; a torch.dtype is returned as it is. Raises ValueError for another name."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise ValueError(f"dtype: got {dtype!r}, expected one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def read_device(device: str | torch.device | None) -> torch.device:
    """The device that is named; None: "cuda" where torch finds a GPU, else "cpu".

    Raises ValueError for a name that torch does not know, and for a CUDA device where torch finds none.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device: got {device!r}, expected cpu, cuda, cuda:1, ...") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: got {str(device)!r}, but torch {torch.__version__} finds no CUDA device here")
    return device
