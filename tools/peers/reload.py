"""What a saved directory gives to somebody who has only the directory, in the saver's own environment.

``python -m peers.reload ORIGINAL OUT``, in a process of its own, writes OUT/reload.safetensors with the logits, and to
OUT/facts.json how many parameters were not in the files (transformers makes them up), whether ties held, and how many
layers there are.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from peers import cases
from safetensors.torch import save_file


def main(original: Path, out: Path) -> None:
    saved = out / "saved"
    ours = (saved / "fxcompress.json").exists() and not (saved / "config.json").exists()
    model, facts = _by_fxcompress(saved) if ours else _by_transformers(saved)
    with torch.no_grad():
        logits = model(input_ids=cases.probe(original)).logits
    save_file({"logits": logits.contiguous()}, out / "reload.safetensors")
    cases.write_facts(out, reloaded=facts)


def _by_transformers(saved: Path) -> tuple[Any, dict[str, Any]]:
    from transformers import AutoModelForCausalLM

    own = (saved / "modelopt_state.pth").exists()
    if own:  # a checkpoint that says how its peer has changed the model
        import modelopt.torch.opt as mto

        mto.enable_huggingface_checkpointing()
    # A parameter of another shape than the config says is made up too, and counted with those that are missing.
    model, notes = AutoModelForCausalLM.from_pretrained(
        saved, output_loading_info=True, ignore_mismatched_sizes=True, attn_implementation="eager"
    )
    model.config.use_cache = False
    return model.eval(), {
        "with": "ModelOpt" if own else "transformers",
        "random": len(notes["missing_keys"]) + len(notes["mismatched_keys"]),
        "tied": model.get_input_embeddings().weight is model.get_output_embeddings().weight,
        "layers": cases.num_layers(model.state_dict()),
    }


def _by_fxcompress(saved: Path) -> tuple[Any, dict[str, Any]]:
    import fxcompress

    small = fxcompress.load(saved)
    state = small.program.state
    facts = {"random": 0, "tied": "lm_head.weight" not in state, "layers": cases.num_layers(state)}
    return small, {"with": "fxcompress.load", **facts}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
