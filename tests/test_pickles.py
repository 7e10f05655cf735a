"""Pickles made by version 0.1, before modules moved into folders, load and compute what they did."""

import pickle
from pathlib import Path

import pytest
import torch

from bertfast.cache.objects import CACHE_FIELD

PICKLES = Path(__file__).parent / "golden" / "pickles"


@pytest.mark.parametrize("name", ["float32", "int8"])
def test_a_pickled_model_computes_what_it_did(name):
    saved = torch.load(PICKLES / f"{name}.pt", weights_only=False)
    with torch.no_grad():
        logits = saved["model"](saved["input_ids"]).logits
    torch.testing.assert_close(logits, saved["logits"], rtol=0, atol=1e-2 if name == "int8" else 1e-5)


def test_a_pickled_cache_goes_on():
    with (PICKLES / "decoder.pickle").open("rb") as file:
        saved = pickle.load(file)
    with torch.no_grad():
        logits = saved["model"](saved["next"], use_cache=True, **{CACHE_FIELD: saved["cache"]}).logits
    torch.testing.assert_close(logits, saved["logits"], rtol=0, atol=1e-5)
