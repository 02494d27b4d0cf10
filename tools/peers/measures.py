"""What was removed is read off the tensors, and the original is masked to match: the judge of everybody, ours included.

Rows of a pruned matrix are found among the rows of the original, so which heads, neurons or experts stayed is measured.
The masked original is transformers' own eager model, changed in place: projections that lose inputs get zeros there, a
norm that loses channels averages over those that stay, a router cannot choose what is gone. It shares no code with
fxcompress. Each function returns {what: part removed} and a list of faults, and leaves the model masked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from peers.cases import MIDDLE
from torch import Tensor, nn

State = dict[str, Tensor]
Measured = tuple[dict[str, float], list[str]]


class Unmatched(Exception):
    """The tensors of a result are not those of the original with parts removed."""


def heads_ffn(model: Any, state: State) -> Measured:
    heads, neurons, faults = [], [], []
    for path, layer in _named(model, "self_attn"):
        q, k = (_positions(getattr(layer, n).weight, state[f"{path}.{n}.weight"]) for n in ("q_proj", "k_proj"))
        heads.append(_removed(layer.q_proj.weight, q))
        faults += _head_faults(q, k, layer)
        _silence(layer.o_proj, state[f"{path}.o_proj.weight"])
    for path, layer in _named(model, "mlp"):
        neurons.append(
            _removed(layer.up_proj.weight, _positions(layer.up_proj.weight, state[f"{path}.up_proj.weight"]))
        )
        _silence(layer.down_proj, state[f"{path}.down_proj.weight"])
    return {"heads": _mean(heads), "FFN": _mean(neurons)}, sorted(set(faults))


def width(model: Any, state: State) -> Measured:
    embedding = model.get_input_embeddings().weight
    kept = _positions(embedding.T, state["model.embed_tokens.weight"].T)
    gone = _without(embedding.shape[1], kept)
    embedding.data[:, gone] = 0
    for name, m in model.named_modules():
        if name.endswith(("o_proj", "down_proj")):
            m.weight.data[gone] = 0
        elif name.endswith("norm"):
            _average_over(m, len(kept) / embedding.shape[1])
    return {"width": _removed(embedding.T, kept)}, []


def ssm_heads(model: Any, state: State) -> Measured:
    removed = []
    for name, a_log in model.named_parameters():
        if not name.endswith(".A_log"):
            continue
        kept = _positions(a_log[:, None], state[name][:, None])
        removed.append(_removed(a_log, kept))
        norm = model.get_submodule(name.removesuffix("A_log") + "norm")
        channels = torch.zeros(len(a_log), norm.weight.numel() // len(a_log))
        channels[kept] = 1
        _average_over(norm, len(kept) / len(a_log), channels.flatten())
    return {"SSM heads": _mean(removed)}, []


def experts(model: Any, state: State) -> Measured:
    removed = []
    for path, router in _named(model, "gate"):
        kept = _positions(router.weight, state[f"{path}.weight"])
        removed.append(_removed(router.weight, kept))
        router.register_forward_hook(_choose_among(kept))
    return {"experts": _mean(removed)}, []


def layer(model: Any, state: State) -> Measured:
    """A block whose projections back to the residual stream are zero adds nothing; how many are left, a reload says."""
    for name, m in model.named_modules():
        if f".layers.{MIDDLE}." in name and name.endswith(("o_proj", "down_proj", "out_proj")):
            for parameter in m.parameters():
                parameter.data.zero_()
    return {}, []


MEASURES: dict[str, Callable[[Any, State], Measured]] = {
    "heads_ffn": heads_ffn,
    "width": width,
    "ssm_heads": ssm_heads,
    "experts": experts,
    "layer": layer,
}


def _named(model: nn.Module, last: str) -> Iterator[tuple[str, Any]]:
    return ((name, m) for name, m in model.named_modules() if name.rpartition(".")[2] == last)


def _positions(before: Tensor, after: Tensor) -> list[int]:
    """Where each row of ``after`` stands in ``before``. A row that is not found there was never the original's."""
    if before.shape[1:] != after.shape[1:]:
        raise Unmatched(f"a matrix has rows of {after.shape[1]} instead of {before.shape[1]}")
    equal = (before.detach()[None] == after[:, None]).all(-1)
    if not equal.any(-1).all():
        raise Unmatched("rows of the result are not rows of the original")
    return equal.int().argmax(-1).tolist()


def _removed(before: Tensor, kept: list[int]) -> float:
    return 1 - len(kept) / len(before)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _without(count: int, kept: list[int]) -> list[int]:
    return sorted(set(range(count)) - set(kept))


def _head_faults(q: list[int], k: list[int], layer: Any) -> list[str]:
    """Heads stay whole, and a query head reads the KV head that it read before."""
    size, group = layer.head_dim, layer.q_proj.out_features // layer.k_proj.out_features
    heads, kv_heads = _whole(q, size), _whole(k, size)
    if heads is None or kv_heads is None:
        return ["heads cut through"]
    now = len(heads) / len(kv_heads)
    if any(kv_heads[int(i // now)] != head // group for i, head in enumerate(heads)):
        return ["query heads read another KV head"]
    return []


def _whole(rows: list[int], size: int) -> list[int] | None:
    """The heads that rows make up, None where they are no whole heads."""
    heads = [row // size for row in rows[::size]]
    return heads if rows == [head * size + i for head in heads for i in range(size)] else None


def _silence(linear: nn.Linear, after: Tensor) -> None:
    """Zeros for the inputs that a projection has lost."""
    linear.weight.data[:, _without(linear.in_features, _positions(linear.weight.T, after.T))] = 0


def _average_over(norm: nn.Module, part: float, mask: Tensor | None = None) -> None:
    """Let an RMS norm see the masked channels alone and average over their number: norm(x s) / s, s^2 = 1 / part."""
    scale = part**-0.5

    def before(_: nn.Module, inputs: tuple) -> tuple:
        x = inputs[0] if mask is None else inputs[0] * mask
        return (x * scale, *inputs[1:])

    norm.register_forward_pre_hook(before)
    norm.register_forward_hook(lambda _, inputs, out: out / scale)


def _choose_among(kept: list[int]) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """The router of Qwen3-MoE with the logits of the removed experts at minus infinity."""

    def again(router: Any, _: Any, out: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        logits = torch.full_like(out[0], -torch.inf)
        logits[:, kept] = out[0][:, kept]
        scores, chosen = logits.softmax(-1).topk(router.top_k, dim=-1)
        if router.norm_topk_prob:
            scores = scores / scores.sum(-1, keepdim=True)
        return logits, scores, chosen

    return again
