"""Random calls of random models, ours against transformers': the draws of tests/fuzz/targets/model_calls.py, the same in every run."""

import pytest
from hypothesis import HealthCheck, given, note, settings

from tests.fuzz.targets.model_calls import Call, calls

pytestmark = pytest.mark.usefixtures("one_thread")

DRAWS = 300


# The same draws in every run: a failure elsewhere is a failure here. Nothing is kept between runs.
@settings(max_examples=DRAWS, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(call=calls())
def test_same_outputs_or_an_error_in_both(call: Call) -> None:
    note(f"Run it again, from the root of the repository:\n\n{call.program()}")
    call.check()
