"""Rules against ground truth: the op itself, run on full and on cut operands.

For every sample a small program is captured: x -> projection -> the op -> projection. Every axis that the rules leave
free is cut, and the op on cut operands must give the cut result of the op on masked operands, in float64. A rule that
ties too little, or forgets a size argument, fails; ``test_what_must_be_found_is_free`` sees to it that no sample
passes by pinning everything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxcompress import CompressError, capture, verify
from fxcompress.allocate import fewest_kept
from fxcompress.axes import AxisMap
from fxcompress.plan import Step
from fxcompress.rewrite import rewrite
from fxcompress.rule import RULES
from fxcompress.rules import lookup, movement, norm, reduce
from tests import models


@dataclass(frozen=True)
class Sample:
    """``op`` maps (batch, length, 12) to (batch, length, ...); ``free`` axes at least must be left to cut."""

    name: str
    op: Callable[[Tensor], Tensor]
    free: int = 1


def heads(x: Tensor) -> Tensor:
    return x.view(*x.shape[:2], 3, 4)


def rotate_half(x: Tensor) -> Tensor:
    a, b = x[..., :6], x[..., 6:]
    return x * 2 + torch.cat([-b, a], -1)


def written(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    y[..., :5].copy_(x[..., :5] * 2)
    y[..., 5:].copy_(x[..., 5:].exp())
    return y


SAMPLES = [
    Sample("view", lambda x: heads(x).flatten(2), 2),
    Sample("view, permuted", lambda x: heads(x).transpose(2, 3).flatten(2), 2),
    Sample("reshape to one dim and back", lambda x: x.reshape(-1, 12).relu().view(x.shape)),
    Sample("permute", lambda x: heads(x).permute(0, 1, 3, 2).reshape(x.shape), 2),
    Sample("squeeze, unsqueeze", lambda x: x.unsqueeze(2).squeeze(2)),
    Sample("split in two", lambda x: torch.cat([t * (i + 1) for i, t in enumerate(x.split([5, 7], -1))], -1), 2),
    Sample("split off a piece of nothing", lambda x: x.split([0, 5, 7], -1)[2]),
    Sample("chunk, gated", lambda x: x.chunk(2, -1)[0] * x.chunk(2, -1)[1].sigmoid()),
    Sample("slice at both ends", lambda x: x[..., 3:10]),
    Sample("slice with negative bounds", lambda x: x[..., -5:]),
    Sample("rotate half", rotate_half),
    Sample("expand over a new axis", lambda x: (heads(x)[:, :, :, None].expand(-1, -1, -1, 2, -1)).flatten(2), 2),
    Sample("repeat_interleave", lambda x: x.repeat_interleave(2, -1)),
    Sample("stack", lambda x: torch.stack([x, x * 2], 2).flatten(2)),
    Sample("pad beside the axis", lambda x: F.pad(heads(x), (0, 0, 1, 1)).flatten(2)),
    Sample("mean over the axis", lambda x: x - x.mean(-1, keepdim=True)),
    Sample("mean over groups", lambda x: (heads(x) - heads(x).mean(-1, keepdim=True)).flatten(2), 2),
    Sample("sum over groups", lambda x: heads(x).sum(-1)),
    Sample("softmax", lambda x: x.softmax(-1)),
    Sample("softmax within heads", lambda x: heads(x).softmax(-1).flatten(2), 2),
    Sample("amax", lambda x: x - x.amax(-1, keepdim=True)),
    Sample("log_softmax", lambda x: x.log_softmax(-1)),
    Sample("layer_norm", lambda x: F.layer_norm(x, (12,))),
    Sample("rms_norm", lambda x: F.rms_norm(x, (12,))),
    Sample("layer_norm within heads", lambda x: F.layer_norm(heads(x), (4,)).flatten(2), 2),
    Sample("matmul of heads", lambda x: (heads(x) @ heads(x).transpose(2, 3) @ heads(x)).flatten(2), 2),
    Sample("einsum as bmm", lambda x: torch.bmm(x, x.transpose(1, 2)) @ x),
    Sample(
        "attention",
        lambda x: F.scaled_dot_product_attention(*[heads(x).transpose(1, 2)] * 3).transpose(1, 2).flatten(2),
        2,
    ),
    Sample(
        "causal depthwise conv1d",
        lambda x: F.conv1d(x.transpose(1, 2), torch.ones(12, 1, 3).double(), padding=1, groups=12).transpose(1, 2),
    ),
    Sample("gelu and arithmetic", lambda x: F.gelu(x) * 2 + x / 3 - 1),
    Sample("where", lambda x: torch.where(x > 0, x, x * 0.1)),
    Sample("zeros_like", lambda x: x + torch.zeros_like(x)),
    Sample("casts", lambda x: x.float().double() * 2),
    Sample("dropout in eval mode", lambda x: F.dropout(x, 0.5, training=False)),
    Sample("copies one after the other", lambda x: x.repeat(1, 1, 2)),
    Sample("the best along the axis", lambda x: x.topk(4, -1).values),
    Sample("looked up where another is best", lambda x: (x + 1).gather(-1, (x * 2).topk(3, -1).indices)),
    Sample("marked where it is best", lambda x: x * torch.zeros_like(x).scatter(-1, x.topk(3, -1).indices, 2.0)),
    Sample("the best two of every head", lambda x: heads(x).topk(2, -1).values.sum(-1), 2),
    Sample("added where it is best", lambda x: x.scatter_add(-1, x.topk(2, -1).indices, x.topk(2, -1).values)),
    Sample("every other index, interleaved", lambda x: torch.stack([x[..., ::2], -x[..., 1::2]], -1).flatten(2)),
    Sample("written into by slices", lambda x: written(x)),
    Sample("heads as rows", lambda x: heads(x).reshape(-1, 4).softmax(-1).reshape(heads(x).shape).flatten(2), 2),
    Sample("transpose of a matrix", lambda x: x.flatten(0, 1).t().t().view(x.shape)),
    Sample("squeeze of several dims", lambda x: x[:, None, :, None].squeeze((1, 3))),
    Sample(
        "batch_norm in eval mode",
        lambda x: F.batch_norm(x.transpose(1, 2), torch.ones(12).double(), torch.ones(12).double()).transpose(1, 2),
    ),
]


class Around(nn.Module):
    """A projection before and after the op, so that its axes are made and consumed by parameters."""

    def __init__(self, op: Callable, width: int) -> None:
        super().__init__()
        self.before, self.after, self.op = nn.Linear(5, 12), nn.Linear(width, 6), op

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.op(self.before(x)))


def program(sample: Sample):
    torch.manual_seed(0)
    x = torch.randn(2, 7, 5, dtype=torch.float64)
    width = sample.op(torch.randn(2, 7, 12, dtype=torch.float64)).shape[-1]
    return capture(models.perturb(Around(sample.op, width).double()).eval(), x)


def free_groups(program):
    return [g for g in program.get(AxisMap).groups if not g.pinned]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: s.name)
def test_the_op_on_cut_operands_is_the_cut_op_on_masked_operands(sample):
    p = program(sample)
    for group in free_groups(p):
        for kept in {1, group.size // 2, group.size - 1} - {0, group.size}:
            order = torch.rand(group.sizes, generator=torch.Generator().manual_seed(kept)).argsort(-1)
            step = Step("cut", {group.key: order[..., :kept].sort(-1).values})
            after = p.clone()
            if kept < fewest_kept(p.get(AxisMap), group):
                with pytest.raises(CompressError, match="best of them are taken"):
                    rewrite(after, step)
                continue
            rewrite(after, step)
            for law in verify.check(p, after, step):
                assert law.holds, (group.key, group.sizes, kept, str(law))


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: s.name)
def test_what_must_be_found_is_free(sample):
    assert len(free_groups(program(sample))) >= sample.free


PINNED = [
    ("indices by position", lambda x: x[..., torch.tensor([0, 3, 5])]),
    ("select", lambda x: x[..., 3][..., None]),
    ("flip", lambda x: x.flip(-1)),
    ("roll", lambda x: x.roll(1, -1)),
    ("addresses that are computed with", lambda x: x.gather(-1, (x.topk(4, -1).indices + 1) % 12)),
    ("addresses of nobody's", lambda x: x.gather(-1, x.argsort(-1))),
    ("columns by number", lambda x: x.index_select(-1, torch.tensor([0, 3, 5]))),
    ("pad of the axis", lambda x: F.pad(x, (1, 1))),
    ("cumsum", lambda x: x.cumsum(-1)),
    ("group_norm", lambda x: F.group_norm(x.transpose(1, 2), 3).transpose(1, 2)),
    ("unbind", lambda x: torch.stack(x.unbind(-1)[:3], -1)),
    ("a slice of every fifth", lambda x: x[..., ::5]),
    ("pairs of heads", lambda x: (heads(x) @ heads(x).transpose(2, 3)).flatten(2)),
    ("a view that misses the factors", lambda x: heads(x).tanh().reshape(*x.shape[:2], 2, 6).flatten(2)),
]


@pytest.mark.parametrize(("name", "op"), PINNED, ids=lambda v: v if isinstance(v, str) else "")
def test_what_depends_on_positions_is_pinned_with_a_reason(name, op):
    groups = [g for g in program(Sample(name, op)).get(AxisMap).groups if g.key.startswith("before.weight[0]")]
    pinned = [g for g in groups if g.pinned]
    assert pinned
    assert all(len(g.pinned[0]) > 20 for g in pinned)
    assert len(pinned) == len(groups) or name == "pairs of heads"  # whose channels are free


def test_every_rule_of_a_movement_look_up_or_reduction_has_a_sample():
    """Or else a rule could be wrong and nobody would know."""
    samples = [*SAMPLES, *(Sample(name, op) for name, op in PINNED)]
    tried = {node.target for sample in samples for node in program(sample).graph.nodes}
    mine = {
        op for op, r in RULES.items() if r.infer.__module__ in {m.__name__ for m in (lookup, movement, norm, reduce)}
    }
    mine -= {torch.ops.aten.scatter.src}  # a scatter_add that overwrites
    assert {str(op) for op in mine - tried} == set()
