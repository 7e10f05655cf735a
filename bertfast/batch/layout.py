"""PackedBatch: padding leaves here, and comes back here.

What a caller passes (padded [B, S] ids, masks of any kind, embeddings) is checked once and becomes the rows that the graph
computes on: the real tokens only where that loses nothing, every cell of the batch where padding counts.

Shape letters: B batch, S padded length, T real tokens, R rows (T, or B * S where padding is kept), H hidden, C any columns.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bertfast import ops
from bertfast.batch.attention import Attention, Masked, Varlen, remembered, uniform_cu_seqlens, uniform_first_rows
from bertfast.graph.encoder import Rows
from bertfast.quantization.int8_layers import Quantized
from bertfast.runtime.config_access import is_causal, setting
from bertfast.runtime.native import _C

Arguments = Mapping[str, Any]

_MASK_KINDS = {
    torch.bool: _C.MASK_BOOL,
    torch.uint8: _C.MASK_UINT8,
    torch.int8: _C.MASK_INT8,
    torch.int16: _C.MASK_INT16,
    torch.int32: _C.MASK_INT32,
    torch.int64: _C.MASK_INT64,
    torch.float16: _C.MASK_FLOAT16,
    torch.bfloat16: _C.MASK_BFLOAT16,
    torch.float32: _C.MASK_FLOAT32,
    torch.float64: _C.MASK_FLOAT64,
}


@dataclass(slots=True)
class PackedBatch:
    """The rows of one call and the way back to [B, S]."""

    rows: Rows
    batch: int  # B
    columns: int  # S
    indices: Tensor | None  # [R] int64: the cell of each row in the flattened [B, S]; None: rows are the cells themselves
    blank: Tensor | None  # [B, S] bool: padded cells, which come back as a fill; None where there are none, or padding is kept
    first_rows: Tensor  # [B] int64: the row of column 0 of each sequence (of its first token, where column 0 is padding)

    def unpack(self, x: Tensor, O: Any, fill: float = 0.0) -> Tensor:  # [R, C] -> [B * S, C]
        if self.indices is not None:
            return O.unpack(x, self.indices, self.batch * self.columns, fill)
        return x if self.blank is None else x.masked_fill(self.blank.view(-1, 1), fill)

    def cells(self, x: Tensor) -> Tensor:  # [B * S, C] -> [B, S, C]
        return x.view(self.batch, self.columns, x.shape[1])

    def padding(self) -> Tensor | None:  # [B, S] bool: the cells that come back as a fill; None where there are none
        if self.indices is None:
            return self.blank
        cells = torch.ones(self.batch * self.columns, dtype=torch.bool, device=self.indices.device)
        return cells.index_fill_(0, self.indices, False).view(self.batch, self.columns)

    def unpack_probabilities(self, probabilities: Tensor) -> Tensor:  # [B, N, S, Sk], rows of padded queries blanked
        return probabilities if self.blank is None else probabilities.masked_fill(self.blank[:, None, :, None], 0.0)


@dataclass(frozen=True, slots=True)
class Needs:
    """What a call asks of its batch beyond the hidden states."""

    keep_padding: bool = False  # padded cells count: compute them as transformers does
    pooled: bool = False  # column 0 is read, whatever it holds
    probabilities: bool = False  # attention probabilities are returned
    differentiable: bool = False  # the graph runs on the reference ops under autograd


@dataclass(frozen=True, slots=True)
class Packing:
    """A 2-D mask, read: which cells are real, and the boundaries between sequences once the others are gone."""

    cu_seqlens: Tensor  # [B + 1] int32
    indices: Tensor  # [T] int64
    positions: Tensor  # [T] int64: the column of each real token
    longest: int
    shortest: int
    first_column_kept: bool


def nothing_padded(mask: Tensor) -> bool:
    """Whether a mask [B, S] on the CPU, of one of _MASK_KINDS, is known to have no 0: one whose rows have gaps has to be copied first."""
    kind, (B, S) = _MASK_KINDS.get(mask.dtype), mask.shape
    row, column = mask.stride()
    if kind is None or (column != 1 and S > 1):
        return False
    return _C.mask_is_full(mask.data_ptr(), kind, B, S, row)


def integer_range(values: Tensor) -> tuple[int, int]:
    """The lowest and the highest of integers or bools, of which there has to be one."""
    kind = _MASK_KINDS.get(values.dtype)
    if kind is None or kind > _C.MASK_INT64 or not values.is_cpu or not values.is_contiguous():
        low, high = torch.aminmax(values)
        return int(low), int(high)
    return _C.integer_range(values.data_ptr(), kind, values.numel())


def read_mask(mask: Tensor, device: torch.device) -> Packing | None:
    """mask: [B, S], any number type; every value but 0 is a real token, as in transformers. None: nothing is padded. The answer lies
    on `device`; a mask that lies there too is waited for, once."""
    host = mask if mask.device.type == "cpu" else mask.ne(0).cpu()
    if host.dtype not in _MASK_KINDS:
        raise ValueError(f"attention_mask: got {mask.dtype}, expected a bool, integer or floating tensor")
    if host.shape[1] and host.stride(1) != 1:
        host = host.contiguous()
    B, S = host.shape
    if nothing_padded(host):
        return None
    # One buffer for all, pinned where a GPU is to read it: one copy, and nobody waits for it. Each part begins at a multiple of 16 bytes,
    # on which kernels are specialised. The device by name: torch.set_default_device may say another.
    places = (B * S + 1) // 2 * 2
    buffer = torch.empty(2 * places + B // 2 + 1, dtype=torch.int64, device="cpu", pin_memory=device.type == "cuda")
    at = buffer.data_ptr()
    total, longest, shortest, first_column_kept = _C.pack_mask(
        host.data_ptr(), _MASK_KINDS[host.dtype], B, S, host.stride(0), at + 16 * places, at, at + 8 * places
    )
    buffer = buffer.to(device, non_blocking=True)
    indices, positions = buffer.narrow(0, 0, total), buffer.narrow(0, places, total)
    cu_seqlens = buffer.narrow(0, 2 * places, B // 2 + 1).view(torch.int32).narrow(0, 0, B + 1)
    return Packing(cu_seqlens, indices, positions, longest, shortest, first_column_kept)


@remembered
def counted(B: int, S: int, device: torch.device) -> Tensor:  # [B * S] int64: 0 .. S - 1, B times
    return torch.arange(S, device=device).repeat(B)


def make_batch(arguments: Arguments, model: Any, needs: Needs) -> PackedBatch:
    """Checks what a BERT reads (see transformers' BertModel.forward) and lays out its rows.

    Raises ValueError, naming the argument, where a shape, dtype or combination makes no sense.
    """
    config, embeddings = model.config, model.embeddings
    weight = embeddings.position_embeddings.weight
    device, dtype = weight.device, weight.dtype
    ids, words, B, S = read_input(arguments, embeddings, config)
    mask = arguments.get("attention_mask")
    causal = is_causal(config)
    eager = setting(config, "_attn_implementation") == "eager"  # its rows that see nothing attend everywhere; sdpa's give zeros
    head_masks = read_head_mask(arguments.get("head_mask"), config, device, dtype)
    plain = needs.probabilities or needs.differentiable or head_masks is not None

    packing = None
    visible: Tensor | None = None  # [B, 1, Sq or 1, Sk]
    if mask is not None:
        mask = read_attention_mask(mask, "attention_mask", B, setting(config, "num_attention_heads"), S, S, device, dtype)
        if mask.dim() == 4:
            visible, plain = mask, True
        else:
            packing = read_mask(mask, device)

    encoder = read_encoder(arguments, B, S, config, device, dtype)
    if encoder is not None and (encoder.visible is not None or (eager and encoder.shortest == 0)):
        plain = True  # cross-attention under a mask needs its queries in place

    keep = packing is None or needs.keep_padding or packing.shortest == 0 or (needs.pooled and not packing.first_column_kept)
    if packing is not None and keep and (causal or (eager and packing.shortest == 0)):
        plain = True

    drop = not keep and not plain
    cells = packing.indices if drop and packing is not None else None

    def rows_of(t: Tensor | None, name: str) -> Tensor | None:  # [B or 1, S] -> [R]
        if t is None:
            return None
        t = read_ids(t, name, B, S, device)
        flat = t.reshape(-1)
        return flat if cells is None else flat.index_select(0, cells)

    positions = rows_of(arguments.get("position_ids"), "position_ids")
    if positions is None:
        limit = embeddings.position_embeddings.weight.shape[0]
        if limit < S:
            raise ValueError(f"input of length {S}: expected at most max_position_embeddings={limit} tokens; truncate it")
        positions = packing.positions if drop and packing is not None else counted(B, S, device)
    if ids is not None:
        row_ids = ids.reshape(-1) if cells is None else ids.reshape(-1).index_select(0, cells)
    else:
        row_ids = counted(1, B * S, device) if cells is None else cells

    cu_seqlens = packing.cu_seqlens if drop and packing is not None else uniform_cu_seqlens(B, S, device)
    longest = packing.longest if drop and packing is not None else S
    attention: Attention
    # What attention reads and gives is coarser than bfloat16 in int8. A decoder's is not rounded: its steps on a cache agree with this.
    rounded = isinstance(embeddings.word_embeddings, Quantized) and not causal
    blank = None
    if plain:
        real = mask.ne(0).to(device) if packing is not None and mask is not None else None
        if visible is None:
            visible = visible_keys(real, S if causal else 0, eager, dtype, device)
        attention = Masked(B, visible, head_masks, needs.probabilities)
        if real is not None and not keep:
            blank = ~real
    elif packing is not None and not drop:
        attention = Varlen(cu_seqlens, packing.cu_seqlens, longest, packing.longest, key_rows=packing.indices, bfloat16_products=rounded)
    else:
        attention = Varlen(cu_seqlens, cu_seqlens, longest, longest, causal, bfloat16_products=rounded)

    rows = Rows(row_ids, words, rows_of(arguments.get("token_type_ids"), "token_type_ids"), positions, attention)
    if encoder is not None and plain:
        visible = encoder.visible if encoder.visible is not None else visible_keys(encoder.real, 0, eager, dtype, device)
        rows.encoder_rows, rows.cross_attention = encoder.rows, Masked(B, visible, head_masks, needs.probabilities)
    elif encoder is not None:
        rows.encoder_rows, rows.cross_attention = encoder.packed(B, cu_seqlens, longest)
    return PackedBatch(rows, B, S, cells, blank, cu_seqlens[:-1].long() if drop else uniform_first_rows(B, S, device))


def read_input(arguments: Arguments, embeddings: Any, config: Any) -> tuple[Tensor | None, Tensor | None, int, int]:
    """input_ids [B, S], or inputs_embeds as a table [B * S, H]; and B and S."""
    ids, embeds = arguments.get("input_ids"), arguments.get("inputs_embeds")
    if (ids is None) == (embeds is None):
        raise ValueError(
            f"You must specify exactly one of input_ids or inputs_embeds, got {'both' if ids is not None else 'neither'}; "
            "pass token ids, or their embeddings, but not the two together"
        )
    weight = embeddings.position_embeddings.weight
    if ids is not None:
        if not isinstance(ids, Tensor) or ids.dim() != 2:
            raise ValueError(f"input_ids: got {describe(ids)}, expected a tensor [batch, length]")
        B, S = ids.shape
        return read_ids(ids, "input_ids", B, S, weight.device), None, B, S
    assert embeds is not None
    H = weight.shape[1]
    if not isinstance(embeds, Tensor) or embeds.dim() != 3 or embeds.shape[2] != H:
        raise ValueError(f"inputs_embeds: got {describe(embeds)}, expected a tensor [batch, length, {H}]")
    if embeds.dtype != weight.dtype:
        raise ValueError(f"inputs_embeds: got {embeds.dtype}, expected {weight.dtype} as the model's weights; cast one of them")
    check_device(embeds, "inputs_embeds", weight.device)
    return None, embeds.reshape(-1, H).contiguous(), embeds.shape[0], embeds.shape[1]


def read_ids(ids: Any, name: str, B: int, S: int, device: torch.device) -> Tensor:  # -> [B, S] int64, contiguous
    if not isinstance(ids, Tensor):
        raise ValueError(f"{name}: got {describe(ids)}, expected a tensor of integers")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"{name}: got {ids.dtype}, expected integers (torch.int64)")
    if ids.shape != (B, S):
        if ids.dim() == 1 and ids.shape[0] == S:
            ids = ids[None]
        if ids.dim() != 2 or ids.shape[1] != S or ids.shape[0] not in (1, B):
            raise ValueError(f"{name}: got shape {tuple(ids.shape)}, expected ({B}, {S}), one for each token of the input")
        ids = ids.expand(B, S)
    check_device(ids, name, device)
    return ids.to(torch.int64).contiguous()


def check_device(t: Tensor, name: str, device: torch.device) -> None:
    if t.device != device:
        raise ValueError(f"{name}: got a tensor on {t.device}, expected one on {device}, where the model's weights are")


def read_attention_mask(mask: Any, name: str, B: int, N: int, Sq: int, Sk: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """[B, Sk] as it is, where it is; [B, Sq, Sk] (every value but 0 sees) and [B, 1 or N, Sq, Sk] (bool sees, float is added) as 4-D."""
    if not isinstance(mask, Tensor):
        raise ValueError(f"{name}: got {describe(mask)}, expected a tensor")
    got, shape = f"{name}: got shape {tuple(mask.shape)}", tuple(mask.shape)
    if mask.dim() == 2:
        if shape != (B, Sk):
            raise ValueError(f"{got}, expected ({B}, {Sk}), one value for each token")
        return mask
    if mask.dim() == 3:
        if shape not in ((B, Sq, Sk), (B, 1, Sk)):
            raise ValueError(f"{got}, expected ({B}, {Sq}, {Sk}), one value for each query and key")
        return mask.to(device).ne(0)[:, None]
    if mask.dim() != 4 or shape[0] not in (1, B) or shape[1] not in (1, N) or shape[2] not in (1, Sq) or shape[3] != Sk:
        raise ValueError(f"{got}, expected ({B}, {Sk}), ({B}, {Sq}, {Sk}) or ({B}, 1, {Sq}, {Sk})")
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise ValueError(f"{name}: got a 4-D mask of {mask.dtype}, expected torch.bool (True sees) or {dtype} (added to the scores)")
    return mask.to(device)


def visible_keys(real: Tensor | None, causal: int, eager: bool, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """[B, 1, S or 1, S] from real [B, S] bool and, causal, the length S; as eager attention's finite numbers where asked."""
    visible = None if real is None else real[:, None, None, :]
    if causal:
        lower = torch.ones(causal, causal, dtype=torch.bool, device=device).tril()
        visible = lower if visible is None else visible & lower
    if visible is None or not eager:
        return visible
    return torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill(~visible, torch.finfo(dtype).min)


def read_head_mask(head_mask: Any, config: Any, device: torch.device, dtype: torch.dtype) -> list[Tensor] | None:
    """[N] for all layers or [L, N] a layer, as transformers documented until 4.x -> L tensors [1, N, 1, 1]."""
    if head_mask is None:
        return None
    L, N = config.num_hidden_layers, config.num_attention_heads
    if not isinstance(head_mask, Tensor) or tuple(head_mask.shape) not in ((N,), (L, N)):
        raise ValueError(f"head_mask: got {describe(head_mask)}, expected shape ({N},) for all layers or ({L}, {N})")
    return list(head_mask.to(device, dtype).expand(L, N)[:, None, :, None, None])


@dataclass(frozen=True, slots=True)
class Encoder:
    """What cross-attention reads: the other model's states, and which of them are real."""

    rows: Tensor  # [B * Se, H]
    length: int  # Se
    packing: Packing | None = None  # of a 2-D mask; None: all are real
    real: Tensor | None = None  # [B, Se] bool, where there is a packing
    visible: Tensor | None = None  # a 4-D mask

    @property
    def shortest(self) -> int:
        return self.length if self.packing is None else self.packing.shortest

    def packed(self, B: int, cu_seqlens_q: Tensor, longest_q: int) -> tuple[Tensor, Varlen]:
        if self.packing is None:
            cu_seqlens = uniform_cu_seqlens(B, self.length, self.rows.device)
            return self.rows, Varlen(cu_seqlens_q, cu_seqlens, longest_q, self.length)
        rows = ops.pack(self.rows, self.packing.indices)
        return rows, Varlen(cu_seqlens_q, self.packing.cu_seqlens, longest_q, self.packing.longest)


def read_encoder(arguments: Arguments, B: int, S: int, config: Any, device: torch.device, dtype: torch.dtype) -> Encoder | None:
    """encoder_hidden_states [B, Se, H] and encoder_attention_mask; None where there are none, or (as in transformers) no decoder."""
    states, mask = arguments.get("encoder_hidden_states"), arguments.get("encoder_attention_mask")
    if states is None or not setting(config, "is_decoder"):
        return None
    if not config.add_cross_attention:
        raise ValueError("encoder_hidden_states: this model has no cross-attention layers; build it with config.add_cross_attention=True")
    H = config.hidden_size
    if not isinstance(states, Tensor) or states.dim() != 3 or states.shape[0] != B or states.shape[2] != H:
        raise ValueError(
            f"encoder_hidden_states: got {describe(states)}, expected a tensor [{B}, length, {H}], one row of it for each input"
        )
    if states.dtype != dtype:
        raise ValueError(f"encoder_hidden_states: got {states.dtype}, expected {dtype} as the model's weights; cast one of them")
    check_device(states, "encoder_hidden_states", device)
    Se = states.shape[1]
    rows = states.reshape(B * Se, H).contiguous()
    if mask is None:
        return Encoder(rows, Se)
    mask = read_attention_mask(mask, "encoder_attention_mask", B, config.num_attention_heads, S, Se, device, dtype)
    if mask.dim() == 4:
        return Encoder(rows, Se, visible=mask)
    packing = read_mask(mask, device)
    return Encoder(rows, Se) if packing is None else Encoder(rows, Se, packing, mask.ne(0).to(device))


def describe(value: Any) -> str:
    return f"{type(value).__name__} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
