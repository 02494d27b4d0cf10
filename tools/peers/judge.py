"""An outcome is measured, never quoted: four questions to the files that a peer left.

asked = got        the part that is gone, read off the tensors
masked = pruned    the original with the removed parts masked gives the logits that the result gave in memory
tied               what was tied is tied in memory, and after a reload
saved = reloaded   the saved directory gives the same logits, and nothing in it was completed with random weights
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from peers import cases
from peers.measures import MEASURES, Unmatched
from safetensors.torch import load_file
from torch import Tensor

TOLERANCE = 1e-4


@dataclass
class Verdict:
    """``outcome``: pass, wrong (it ended well, not as asked), fails (it said so), later or no."""

    outcome: str
    faults: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def judge(row: str, original: Path, out: Path) -> Verdict:
    facts = facts_of(out)
    if "error" in facts:
        return Verdict("fails", [facts["error"]], facts)
    if row == "kv":
        faults, figures = cache(facts), facts
    elif row == "two_of_four":
        faults, figures = two_of_four(original, out, facts)
    else:
        try:
            faults, figures = pruned(row, original, out, facts)
        except Unmatched as why:
            faults, figures = [str(why)], facts
    return Verdict("wrong" if faults else "pass", faults, figures)


def facts_of(out: Path) -> dict[str, Any]:
    file = out / "facts.json"
    return json.loads(file.read_text()) if file.exists() else {}


Judged = tuple[list[str], dict[str, Any]]


def pruned(row: str, original: Path, out: Path, facts: dict[str, Any]) -> Judged:
    model = cases.load(original)
    figures: dict[str, Any] = {"parameters_before": sum(p.numel() for p in model.parameters()), **facts}
    layers = cases.num_layers(model.state_dict())
    memory = load_file(out / "memory.safetensors") if (out / "memory.safetensors").exists() else {}
    state = {name.removeprefix("state."): t for name, t in memory.items()}
    got, faults = MEASURES[row](model, state)
    asked = cases.HALF
    if row == "layer":
        asked, got = 1 / layers, {"layers": (layers - facts["reloaded"]["layers"]) / layers}
    faults += [f"{what} {part:.0%} of {asked:.0%}" for what, part in got.items() if abs(part - asked) > 1e-6]
    with torch.no_grad():
        masked = model(input_ids=cases.probe(original)).logits
    result = memory.get("logits", masked)  # a peer that never builds the model leaves files alone: those are compared
    figures |= {"asked": asked, "got": got, "masked": difference(masked, result)}
    if figures["masked"] > TOLERANCE:
        faults.append(f"differs from the masked original by {figures['masked']:.1g}")
    reloaded, more = saved(original, out, facts, result)
    return faults + reloaded, figures | more


def saved(original: Path, out: Path, facts: dict[str, Any], result: Tensor) -> Judged:
    """Faults of the directory against the logits it should give, and of ties."""
    again, told = load_file(out / "reload.safetensors")["logits"], facts["reloaded"]
    error = difference(again, result)
    faults = []
    if told["random"]:
        faults.append(f"{told['random']} tensors random after reload")
    elif error > TOLERANCE:
        faults.append(f"reload differs by {error:.1g}")
    was_tied = json.loads((original / "config.json").read_text())["tie_word_embeddings"]
    if was_tied and not (facts.get("tied", True) and told["tied"]):
        faults.append("no longer tied")
    return faults, {"reload": error}


def two_of_four(original: Path, out: Path, facts: dict[str, Any]) -> Judged:
    """The pattern is looked for in the files, in every projection; routers and embeddings stay dense.

    Projections with a size that is no multiple of four are left out: not everybody cuts them, and no kernel takes them.
    """
    tensors = {name: t for f in (out / "saved").glob("*.safetensors") for name, t in load_file(f).items()}
    weights = [t for name, t in tensors.items() if name.endswith(("proj.weight", "gate_up_proj", "down_proj"))]
    weights = [t for t in weights if t.shape[-1] % 4 == t.shape[-2] % 4 == 0]
    part = sum(t.numel() for t in weights if is_two_of_four(t)) / sum(t.numel() for t in weights)
    result = load_file(out / "memory.safetensors")["logits"]
    with torch.no_grad():
        dense = cases.load(original)(input_ids=cases.probe(original)).logits
    before, after = (sum(f.stat().st_size for f in d.glob("model*.safetensors")) for d in (original, out / "saved"))
    figures = {**facts, "two_of_four": part, "file_size": after / before, "logits_moved": difference(result, dense)}
    faults = [] if part == 1 else [f"{part:.0%} of the weights are 2:4 after reload"]
    reloaded, more = saved(original, out, facts, result)
    return faults + reloaded, figures | more


def is_two_of_four(weight: Tensor) -> bool:
    """At most two of four neighbours along the inputs are not zero."""
    return weight.shape[-1] % 4 == 0 and bool((weight.reshape(-1, 4) != 0).sum(1).max() <= 2)


def cache(facts: dict[str, Any]) -> list[str]:
    """Tokens in the KV cache of every attention layer after a prompt, against half of the prompt."""
    if not facts["kept"]:
        return ["no cache found"]
    return [f"{n} of {facts['prompt']} tokens kept" for n in sorted(set(facts["kept"])) if 2 * n != facts["prompt"]]


def difference(one: Tensor, other: Tensor) -> float:
    """Of two sets of logits, relative to the largest; infinite where they do not compare."""
    if one.shape != other.shape or not (one.isfinite().all() and other.isfinite().all()):
        return float("inf")
    return float((one - other).abs().max() / other.abs().max())
