"""Strategies: JSON of a model folder with values of wrong types, odd numbers and text, missing and repeated keys; and damaged JSON."""

import json
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.damage import damaged

ODD_NUMBERS = [0, 1, -1, 2, 3, 7, 2**31, 2**63, 2**64, 10**30, -(2**63), 0.0, -0.0, 0.5, 1e-300, 1e308, float("inf"), float("nan"), 1e3]
ODD_TEXT = [
    "",
    "a",
    "\0",
    "\ud800",
    "../x",
    "/etc/passwd",
    "é" * 3,
    "x" * 5000,
    "1",
    "true",
    "None",
    "\u202e",
    "{}",
    "%s",
    "torch.float32",
    "nan",
]
PARTS = [b"[" * 20_000, b'{"a":' * 20_000, b"9" * 5_000, b"1e999", b"NaN", b'"\xff"', b"-", b"[1,]", b'{"a":1,"a":2}', b'"\\ud800"', b"nul"]

scalars = st.one_of(st.none(), st.booleans(), st.sampled_from(ODD_NUMBERS), st.sampled_from(ODD_TEXT), st.integers(-3, 70))
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(ODD_TEXT), inner, max_size=3), max_leaves=5
)


@st.composite
def edited_json(draw: st.DrawFn, base: Any, keys: tuple[str, ...] = (), raw: bool = True) -> bytes:
    """`base` with one to three values replaced, removed or added; now and then, if `raw`, with broken syntax.

    keys: names that an edit may add, beside odd ones.
    """
    if draw(st.integers(0, 15)) == 0:
        base = draw(values)
    content = json.loads(json.dumps(base))
    for _ in range(draw(st.integers(1, 3))):
        content = _edit(draw, content, keys)
    text = json.dumps(content).encode("utf-8", "surrogatepass")
    if raw and draw(st.integers(0, 7)) == 0:
        return draw(damaged(text))
    if raw and draw(st.integers(0, 7)) == 0:  # one value becomes text that is no JSON, or very deep
        at = draw(st.integers(0, len(text)))
        return text[:at] + draw(st.sampled_from(PARTS)) + text[at:]
    if raw and draw(st.integers(0, 15)) == 0:
        return text.decode().encode(draw(st.sampled_from(["utf-16", "utf-8-sig", "utf-32"])))
    return text


def _edit(draw: st.DrawFn, node: Any, keys: tuple[str, ...]) -> Any:
    """`node` with one edit somewhere below."""
    if isinstance(node, dict) and node and draw(st.integers(0, 3)) > 0:
        key = draw(st.sampled_from(sorted(node)))
        if draw(st.integers(0, 5)) == 0:
            return {name: value for name, value in node.items() if name != key}
        return {**node, key: _edit(draw, node[key], keys)}
    if isinstance(node, dict) and draw(st.booleans()):
        return {**node, draw(st.sampled_from([*keys, *ODD_TEXT])): draw(values)}
    if isinstance(node, list) and node and draw(st.integers(0, 3)) > 0:
        at = draw(st.integers(0, len(node) - 1))
        kind = draw(st.sampled_from(["edit", "edit", "remove", "repeat", "reverse"]))
        if kind == "remove":
            return node[:at] + node[at + 1 :]
        if kind == "repeat":
            return [*node[: at + 1], *node[at:]]
        return node[::-1] if kind == "reverse" else [*node[:at], _edit(draw, node[at], keys), *node[at + 1 :]]
    if isinstance(node, (int, float)) and not isinstance(node, bool) and draw(st.booleans()):
        return draw(st.sampled_from([node + 1, node - 1, -node, float(node), str(node), node * 2, [node], 2**31 * (node or 1)]))
    return draw(values)
