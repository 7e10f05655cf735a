"""The schema of what a recorded forward reads."""

import os
import subprocess
import sys
from dataclasses import fields

import pytest

from bertfast.engine.plan_inputs import SLOT_COUNTS, SLOT_OF, PlanInputs, RowCount

# Imports the schema with its members in reverse, then everything else, and compares replays with forwards op by op.
REVERSED = """
import ast, importlib.util, sys
import torch, transformers

{which}
spec = importlib.util.find_spec("bertfast.engine.plan_inputs")
tree = ast.parse(open(spec.origin).read())
for node in tree.body:
    if isinstance(node, ast.ClassDef) and node.name in names:
        members = [n for n in node.body if isinstance(n, ast.AnnAssign)]
        values = [n for n in node.body if isinstance(n, ast.Assign)]
        assert members or values
        for i, n in enumerate(reversed(values)):
            n.value = ast.Constant(i)
        rest = [n for n in node.body if n not in members and n not in values]
        node.body = [*rest[:1], *reversed(members), *reversed(values), *rest[1:]]
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
exec(compile(ast.fix_missing_locations(tree), spec.origin, "exec"), vars(module))

import bertfast
from bertfast import ops
from bertfast.engine import cpu_plans, decode_plan, plan_inputs, shape_cache
from bertfast.engine.model_state import state_of
from bertfast.engine.plan_builder import RecordedPlan
from builders import small_model

assert plan_inputs is module
print(list(module.SLOT_OF)[0], module.RowCount.ROWS.value)
def check(model, **arguments):
    with torch.no_grad():
        outputs = [model(**arguments) for _ in range(3)]
        assert [type(entry) for entry in state_of(model).plans.entries.values()] == [RecordedPlan]
        real = cpu_plans.plan_key, shape_cache.lookup
        cpu_plans.plan_key, shape_cache.lookup = lambda call: None, lambda state, key: None
        eager = model(**arguments)
        cpu_plans.plan_key, shape_cache.lookup = real
    for name, value in eager.items():
        assert all(torch.equal(output[name], value) for output in outputs), name

ids = torch.arange(24).view(3, 8)
full = dict(input_ids=ids, token_type_ids=ids % 2, position_ids=ids % 8)
padded = dict(full, attention_mask=(torch.arange(8) < torch.tensor([[8], [3], [5]])).long())
check(small_model("BertModel"), **full)
check(small_model("BertModel"), **padded)
check(small_model("BertForSequenceClassification"), **padded)
check(small_model("BertModel"), inputs_embeds=torch.randn(3, 8, 24))
cross = small_model("BertModel", is_decoder=True, add_cross_attention=True)
check(cross, **full, encoder_hidden_states=torch.randn(3, 5, 24))

decoder = small_model("BertLMHeadModel", is_decoder=True)
options = dict(max_new_tokens=8, do_sample=False, use_cache=True, eos_token_id=None, pad_token_id=0)
replayed = decoder.generate(ids, **options)
decode_plan.DecodeStepPlan.__call__ = lambda self, inputs: self.run_ops(ops)
assert torch.equal(replayed, decoder.generate(ids, **options))
print("equal")
"""


@pytest.mark.parametrize(
    ("names", "first"),
    [(["PlanInputs"], "cache_lengths 0"), (["RowCount"], "input_ids 5"), (["PlanInputs", "RowCount"], "cache_lengths 5")],
    ids=["slots", "counts", "both"],
)
def test_another_order_gives_the_same_bits(names, first):
    code = REVERSED.replace("{which}", f"names = {names!r}")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=600, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.split("\n")[:2] == [first, "equal"]


def test_every_slot_has_a_row_count():
    assert list(SLOT_OF) == [field.name for field in fields(PlanInputs)]
    assert len(SLOT_COUNTS) == len(SLOT_OF)
    assert all(isinstance(count, RowCount) for count in SLOT_COUNTS)
    assert sorted(RowCount) == list(range(len(RowCount)))
