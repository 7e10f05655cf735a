"""Strategies: damaged bytes."""

from hypothesis import strategies as st

NUMBERS = [0, 1, 2, 7, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**48, 2**62, 2**63 - 1, 2**63, 2**64 - 1]


@st.composite
def damaged(draw: st.DrawFn, valid: bytes) -> bytes:
    """One to four edits of `valid`, most of them near its start or end, where the structure of most formats is."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        _edit(draw, data)
    return bytes(data)


def _place(draw: st.DrawFn, data: bytearray) -> int:
    last = max(len(data) - 1, 0)
    return draw(st.one_of(st.integers(0, last), st.integers(0, min(256, last)), st.integers(max(0, last - 256), last)))


def _edit(draw: st.DrawFn, data: bytearray) -> None:
    kind, at = draw(st.sampled_from(["flip", "byte", "number", "cut", "delete", "repeat", "insert", "swap", "append"])), _place(draw, data)
    end = min(len(data), at + draw(st.integers(1, 64)))
    if kind == "flip" and data:
        data[at] ^= 1 << draw(st.integers(0, 7))
    elif kind == "byte" and data:
        data[at] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, ord("0"), ord("-"), ord('"'), ord("["), ord("}")]))
    elif kind == "number":
        width = draw(st.sampled_from([2, 4, 8]))
        data[at : at + width] = (draw(st.sampled_from(NUMBERS)) % (1 << 8 * width)).to_bytes(
            width, draw(st.sampled_from(["little", "big"]))
        )
    elif kind == "cut":
        del data[at:]
    elif kind == "delete":
        del data[at:end]
    elif kind == "repeat":
        data[at:at] = data[at:end] * draw(st.integers(1, 3))
    elif kind == "insert":
        data[at:at] = draw(st.binary(min_size=1, max_size=16))
    elif kind == "swap":
        to = _place(draw, data)
        data[at:end], data[to : to + end - at] = data[to : to + end - at], data[at:end]
    elif kind == "append":
        data += draw(st.binary(min_size=1, max_size=16))
