"""Scores against what hooks on the eager model of transformers see, and the laws that all of them obey."""

from __future__ import annotations

import pytest
import torch

import fxcompress
from fxcompress import CompressError, capture
from fxcompress.batches import batches_of
from fxcompress.gather import gather
from fxcompress.passes import (
    PruneAttentionHeads,
    PruneEmbedding,
    PruneExperts,
    PruneFFN,
    PruneSSMChannels,
    PruneSSMHeads,
)
from fxcompress.read_score import CRITERIA, criterion
from fxcompress.score import scores
from tests import models

IDS, MASK = models.left_padded(3, 12)
BATCH = {"input_ids": IDS, "attention_mask": MASK}
SEQUENCE = {
    "mean": lambda x: x.abs().mean(0),
    "l2": lambda x: x.norm(dim=0),
    "variance": lambda x: x.var(0, unbiased=False),
}
OVER = {
    "mean": lambda v: v.mean(0),
    "l2": lambda v: v.square().mean(0).sqrt(),
    "variance": lambda v: v.var(0, unbiased=False),
}


def seen(model, path, side="input"):
    """What a module of the eager model reads or gives, (batch, tokens, width)."""
    found = []
    module = model.get_submodule(path)
    if side == "input":
        hook = module.register_forward_pre_hook(lambda _, x: found.append(x[0].detach()))
    else:
        hook = module.register_forward_hook(lambda _, x, y: found.append(y.detach()))
    with torch.no_grad():
        model(**BATCH, use_cache=False)
    hook.remove()
    return found[0]


def aggregated(x, sequence="l2", batch="l2"):
    return OVER[batch](torch.stack([SEQUENCE[sequence](row[m.bool()]) for row, m in zip(x, MASK, strict=True)]))


def score_of(model, p, where, batches=(BATCH,)):
    """The scores of the group of a pass that lies in a module."""
    program = capture(model)
    statistics = gather(program, p.watches(program), batches_of(list(batches)))
    (group,) = [g for g in p.selected(program) if any(slot.name.startswith(where) for slot in g.slots)]
    return scores(p.criterion, program, group, statistics)


def doubles(name):
    return models.tiny(name).double()


@pytest.mark.parametrize("batch", OVER)
@pytest.mark.parametrize("sequence", SEQUENCE)
@pytest.mark.parametrize(("at", "path", "side"), [("input", "down_proj", "input"), ("output", "up_proj", "output")])
def test_neurons_are_scored_by_what_the_linears_read_and_give(sequence, batch, at, path, side):
    model = doubles("llama")
    where = "model.layers.1.mlp."
    score = f"activation(sequence={sequence}, batch={batch}, at={at})"
    ours = score_of(model, PruneFFN(ratio=0.5, score=score), where)
    theirs = aggregated(seen(model, where + path, side), sequence, batch)
    if at == "output":  # the gate gives the axis as well
        theirs = theirs + aggregated(seen(model, where + "gate_proj", side), sequence, batch)
    torch.testing.assert_close(ours, theirs)


def test_query_heads_are_scored_by_what_the_output_projection_reads_of_each():
    model = doubles("llama")
    where = "model.layers.0.self_attn."
    heads = seen(model, where + "o_proj").unflatten(-1, (2, 3, 8))  # (KV head, query head of it, channel)
    channels = aggregated(heads.flatten(2)).unflatten(-1, (2, 3, 8)).norm(dim=-1)
    ours = score_of(model, PruneAttentionHeads(ratio=0.34, score="activation"), where)
    torch.testing.assert_close(ours, channels)
    at_tokens = aggregated(heads.norm(dim=-1).flatten(2)).unflatten(-1, (2, 3))
    ours = score_of(model, PruneAttentionHeads(ratio=0.34, score="activation(join=token)"), where)
    torch.testing.assert_close(ours, at_tokens)


def test_embedding_channels_are_summed_over_all_norms_that_feed_a_projection():
    model = doubles("llama")
    reads = [
        f"model.layers.{i}.{m}" for i in range(len(model.model.layers)) for m in ("self_attn.q_proj", "mlp.up_proj")
    ]
    theirs = sum(aggregated(seen(model, path)) for path in [*reads, "lm_head"])
    ours = score_of(model, PruneEmbedding(ratio=0.25, score="activation"), "model.embed_tokens")
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["mamba2", "nemotron_h"])
def test_ssm_heads_and_channels_are_scored_on_x_before_the_convolution(name):
    """Minitron-SSM, section 3: s is (heads, channels); channels by their norm over heads, heads over channels."""
    model = doubles(name)
    where = {"mamba2": "backbone.layers.0.mixer.", "nemotron_h": "model.layers.0.mixer."}[name]
    mixer = model.get_submodule(where[:-1])
    width, heads = mixer.intermediate_size, mixer.num_heads
    given = seen(model, where + "in_proj", "output")
    s = aggregated(given[..., width : 2 * width]).view(heads, -1)
    groups = mixer.n_groups
    ours = score_of(model, PruneSSMHeads(ratio=0.5, score="activation(at=x)"), where)
    torch.testing.assert_close(ours, s.norm(dim=1).view(groups, -1))
    z = aggregated(given[..., :width]).view(heads, -1)
    ours = score_of(model, PruneSSMHeads(ratio=0.5, score="activation(at=z)"), where)
    torch.testing.assert_close(ours, z.norm(dim=1).view(groups, -1))
    out = aggregated(seen(model, where + "out_proj")).view(heads, -1)
    ours = score_of(model, PruneSSMHeads(ratio=0.5, score="activation"), where)
    torch.testing.assert_close(ours, out.norm(dim=1).view(groups, -1))


def test_channels_first_then_heads_by_the_channels_that_are_left():
    """The nested score: what is cut by the first pass does not count for the second."""
    model = doubles("mamba2")
    passes = [PruneSSMChannels(ratio=0.5, score="activation(at=x)"), PruneSSMHeads(ratio=0.5, score="activation(at=x)")]
    small = fxcompress.apply(model, passes, calibration=[BATCH])
    channels, heads = (next(iter(step.keep.values())) for step in small.steps)
    mixer = model.backbone.layers[0].mixer
    width = mixer.intermediate_size
    s = aggregated(seen(model, "backbone.layers.0.mixer.in_proj", "output")[..., width : 2 * width])
    s = s.view(mixer.num_heads, -1)
    if channels.dim() == 1:
        left = s[:, channels]
        assert channels.tolist() == s.norm(dim=0).topk(len(channels)).indices.sort().values.tolist()
    else:
        left = s.gather(1, channels.reshape(mixer.num_heads, -1))
    grouped = left.norm(dim=1).view(mixer.n_groups, -1)
    assert heads.tolist() == grouped.topk(heads.shape[-1]).indices.sort(-1).values.tolist()
    assert (
        heads.tolist() != s.norm(dim=1).view(mixer.n_groups, -1).topk(heads.shape[-1]).indices.sort(-1).values.tolist()
    )


def test_fluctuation_is_the_variance_of_what_a_column_reads_times_its_squared_norm():
    model = doubles("llama")
    where = "model.layers.1.mlp."
    x = seen(model, where + "down_proj")[MASK.bool()]
    norms = model.get_submodule(where + "down_proj").weight.detach().square().sum(0)
    ours = score_of(model, PruneFFN(ratio=0.5, score="fluctuation"), where)
    torch.testing.assert_close(ours, x.var(0, unbiased=False) * norms)


def test_taylor_is_the_derivative_of_the_loss_by_a_gate_on_each_neuron():
    model = doubles("llama").requires_grad_(False)
    where = "model.layers.1.mlp.down_proj"
    each = []
    for row, mask in zip(IDS, MASK, strict=True):
        gate = torch.ones(80, dtype=torch.float64, requires_grad=True)
        hook = model.get_submodule(where).register_forward_pre_hook(lambda _, x, gate=gate: (x[0] * gate,))
        logits = model(row[None], attention_mask=mask[None], use_cache=False).logits[0]
        hook.remove()
        counts = (mask[1:] * mask[:-1]).bool()
        loss = torch.nn.functional.cross_entropy(logits[:-1].float()[counts], row[1:][counts])
        each.append(torch.autograd.grad(loss, gate)[0])
    theirs = torch.stack(each).square().mean(0).sqrt()
    ours = score_of(model, PruneFFN(ratio=0.5, score="taylor"), "model.layers.1.mlp.")
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-9)
    assert all(p.grad is None for p in model.parameters())


def test_experts_are_scored_by_the_weight_that_the_router_gives_them():
    model = models.tiny("mixtral")  # in float32: eager experts run in no wider type
    router = "model.layers.0.mlp.gate"
    found = []
    hook = model.get_submodule(router).register_forward_hook(lambda _, x, y: found.append(y))
    with torch.no_grad():
        model(**BATCH, use_cache=False)
    hook.remove()
    _, weights, index = found[0]
    total = torch.zeros(6, dtype=torch.float64)
    real = MASK.bool().flatten()
    total.index_add_(0, index[real].flatten(), weights[real].flatten().double())
    ours = score_of(model, PruneExperts(ratio=0.34, score="routing"), "model.layers.0.")
    torch.testing.assert_close(ours, total / real.sum(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("score", ["activation", "activation(sequence=variance, batch=mean)", "fluctuation", "taylor"])
def test_scores_do_not_depend_on_how_sequences_are_batched_or_padded(score):
    model = doubles("nemotron_h")
    rows = [row[mask.bool()][None] for row, mask in zip(IDS, MASK, strict=True)]
    p = PruneFFN(ratio=0.5, score=score)
    where = "model.layers.1."
    together, apart = score_of(model, p, where), score_of(model, p, where, [{"input_ids": row} for row in rows])
    torch.testing.assert_close(together, apart, rtol=1e-6, atol=1e-12)


def test_a_score_that_counts_padding_is_seen():
    """The planted fault of the law above."""
    model = doubles("nemotron_h")
    rows = [{"input_ids": row[mask.bool()][None]} for row, mask in zip(IDS, MASK, strict=True)]
    p = PruneFFN(ratio=0.5, score="activation")
    unmasked = score_of(model, p, "model.layers.1.", [{"input_ids": IDS}])
    assert not torch.allclose(unmasked, score_of(model, p, "model.layers.1.", rows), rtol=1e-2)


def test_one_sweep_serves_all_passes(monkeypatch):
    from fxcompress import observe

    sweeps = []
    sweep = observe.Observer.sweep
    monkeypatch.setattr(observe.Observer, "sweep", lambda self, *a: sweeps.append(len(self.sums)) or sweep(self, *a))
    passes = [PruneFFN(ratio=0.5, score="activation"), PruneEmbedding(ratio=0.25, score="fluctuation")]
    fxcompress.apply(
        doubles("llama"), [*passes, PruneAttentionHeads(ratio=0.34, score="activation")], calibration=[BATCH]
    )
    assert len(sweeps) == 1


def test_cut_statistics_score_as_those_of_the_whole_do():
    """What an earlier pass cuts goes out of the statistics; the rest stays as it was observed."""
    model = doubles("llama")
    wide = PruneFFN(ratio=0.25, score="activation")
    narrow = PruneFFN(size=30, score="activation")
    twice = fxcompress.apply(model, [wide, narrow], calibration=[BATCH])
    once = fxcompress.apply(model, [narrow], calibration=[BATCH])
    for key, kept in once.steps[0].keep.items():
        first, second = (step.keep[key] for step in twice.steps)
        assert first[second].tolist() == kept.tolist()


def test_nan_in_activations_is_named_by_its_place():
    model = models.tiny("llama")
    program = capture(model)
    p = PruneFFN(ratio=0.5, score="activation")
    watches = p.watches(program)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(CompressError, match=r"hold NaN at .* of model\.layers\.1\.mlp"):
        gather(program, watches, batches_of([BATCH]))


@pytest.mark.parametrize(
    "text", ["activation", "activation(at=output)", "taylor(batch=mean)", "routing", "fluctuation"]
)
def test_a_criterion_is_written_as_it_is_read(text):
    assert str(criterion(text)) == text
    assert criterion(criterion(text)) == criterion(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("magic", "magnitude, activation, fluctuation, taylor, routing, random"),
        ("activation(sequence=median)", "sequence='median' is unknown; there are mean, l2, variance"),
        ("activation(sequenc=mean)", "has no option 'sequenc' (did you mean sequence?)"),
        ("magnitude(p=1)", "has no option 'p'; it has none"),
        ("activation(mean)", "is not a name with options"),
        ("activation(sequence=[])", "is not a name with options"),
        ("__import__('os').system('x')", "is not a name with options"),
        ("activation(**{})", "is not a name with options"),
        ("(" * 500, "is not a name with options"),
        ("", "is not a name with options"),
    ],
)
def test_text_that_is_no_criterion_is_refused_with_what_there_is(text, said):
    with pytest.raises(CompressError) as refusal:
        PruneFFN(ratio=0.5, score=text)
    assert said in str(refusal.value)


@pytest.mark.parametrize(
    ("p", "name", "said"),
    [
        (PruneFFN(ratio=0.5, score="activation(at=x)"), "llama", "no state-space mixer has this axis"),
        (PruneFFN(ratio=0.5, score="routing"), "llama", "'routing' scores experts"),
        (PruneSSMChannels(ratio=0.5, score="activation(join=token, at=x)"), "mamba2", "side by side"),
    ],
)
def test_a_criterion_that_a_group_has_no_place_for_is_refused(p, name, said):
    with pytest.raises(CompressError, match=said):
        p.check(capture(models.tiny(name)))


def test_every_criterion_is_named_by_its_text():
    assert all(kind.name == name and str(kind()) == name for name, kind in CRITERIA.items())
