"""ModelOpt 0.47: its LLM pruning needs Megatron; on transformers' models FastNAS and masks are what is left.

FastNAS searches widths under a bound on parameters. FFN widths are the only ones that it finds in these models, so the
bound is what half of them would leave; its score is how little the logits move. Masks are exported before saving, and
checkpoints are ModelOpt's own, both as its guide says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import modelopt.torch.opt as mto
import modelopt.torch.prune as mtp
import modelopt.torch.sparsity as mts
import torch
from peers import cases


def work(case: str, original: Path, out: Path) -> None:
    mto.enable_huggingface_checkpointing()
    model = cases.load(original)
    ids = cases.calibration(original)
    if case == "two_of_four":
        config = {"forward_loop": lambda m: [m(input_ids=batch) for batch in ids.split(4)]}
        model = mts.export(mts.sparsify(model, mode="sparsegpt", config=config))
    else:
        model = _fastnas(model, ids, out)
    cases.record(model, original, out)


def _fastnas(model: Any, ids: torch.Tensor, out: Path) -> Any:
    with torch.no_grad():
        before = model(input_ids=ids).logits

    def score(m: Any) -> float:
        with torch.no_grad():
            return -float((m(input_ids=ids).logits - before).square().mean())

    config = {
        "data_loader": [ids[:4]],
        "collect_func": lambda batch: batch,
        "score_func": score,
        "checkpoint": str(out / "search.pth"),
    }
    widths = {"nn.Linear": {"*": {"features_ratio": (cases.HALF, 1.0), "feature_divisor": 4}}}
    bound = {"params": _parameters_with_half_of_the_ffn(model)}
    left, _ = mtp.prune(model, [("fastnas", widths)], bound, dummy_input=ids[:1], config=config)
    return left


def _parameters_with_half_of_the_ffn(model: Any) -> int:
    """As ModelOpt counts: tied weights once for each of their names."""
    sizes = {name: p.numel() for name, p in model.named_parameters(remove_duplicate=False)}
    ffn = sum(
        size
        for name, size in sizes.items()
        if name.endswith(("up_proj.weight", "gate_proj.weight", "down_proj.weight"))
    )
    return sum(sizes.values()) - int(ffn * cases.HALF)


if __name__ == "__main__":
    cases.main(work)
