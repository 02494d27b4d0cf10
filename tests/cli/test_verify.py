"""``verify`` believes nothing that a result says: it replays the plan on the original and compares."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from fxcompress.files import sha256
from fxcompress.manifest import MANIFEST, read_manifest


@pytest.fixture
def result(small, tmp_path):
    """A result of one's own, to break."""
    return shutil.copytree(small, tmp_path / "out")


def rows(output: str) -> dict[tuple[str, str], list[str]]:
    """The table's rows by (of, check): [verdict, detail]."""
    cells = [[cell.strip() for cell in line.strip("│┃ ").split("│")] for line in output.splitlines() if "│" in line]
    return {(of, check): rest for of, check, *rest in cells}


def edit(folder, change) -> None:
    manifest = read_manifest(folder)
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_every_claim_of_a_good_result_holds(run, saved, small):
    shown = run("verify", saved("llama"), small)
    assert shown.exit_code == 0, shown.output
    found = rows(shown.stdout)
    assert found.pop(("result", "weights equal the replay's")) == ["holds", "20 tensors, bit for bit"]
    assert found.pop(("result", "ties are kept")) == ["holds", "model.embed_tokens.weight"]
    assert {verdict for verdict, _ in found.values()} == {"holds"}
    assert {check for of, check in found if of == "PruneFFN"} == {"shapes", "count", "prune equals mask", "permutation"}


def test_a_changed_weight_is_seen_by_its_hash(run, saved, result):
    _nudge(result)
    shown = run("verify", saved("llama"), result)
    assert shown.exit_code == 1
    assert rows(shown.stdout) == {
        ("result", "hashes"): ["FAILS", "model.safetensors is another file than was recorded"]
    }


def test_a_changed_weight_is_seen_even_with_its_hash_renewed(run, saved, result):
    _nudge(result)
    edit(result, lambda m: m["sha256"].update({"model.safetensors": sha256(result / "model.safetensors")}))
    shown = run("verify", saved("llama"), result)
    assert shown.exit_code == 1
    verdict, detail = rows(shown.stdout)["result", "weights equal the replay's"]
    assert (verdict, detail) == ("FAILS", "1 of 20 tensors differ, model.norm.weight among them")


def test_another_original_is_not_the_original(run, copied, result):
    other = copied("llama")
    _nudge(other)
    shown = run("verify", other, result)
    assert shown.exit_code == 1
    found = rows(shown.stdout)
    assert found["original", "hashes"][0] == "FAILS"
    assert found["result", "weights equal the replay's"][0] == "FAILS"
    assert found["PruneFFN", "prune equals mask"][0] == "holds"


def test_a_plan_that_the_original_cannot_follow_is_a_failure_and_no_crash(run, saved, result):
    edit(result, lambda m: m["steps"][0]["keep"].update({"model.layers.7.mlp.gate_proj.weight[0]": "0-59"}))
    shown = run("verify", saved("llama"), result)
    assert shown.exit_code == 1
    assert rows(shown.stdout)["PruneFFN", "replay"][0] == "FAILS"


@pytest.mark.slow
def test_a_result_of_two_runs_holds_against_both_originals(run, saved, heads, tmp_path):
    second = tmp_path / "second"
    assert run("compress", heads, "-o", second, "--pass", "PruneSSMHeads(size=6)").exit_code == 0
    assert [run["model"] for run in read_manifest(second)["report"]["notes"]["runs"]] == ["mamba2", "out"]
    for original, passes in ((saved("mamba2"), 2), (heads, 1)):
        shown = run("verify", original, second)
        assert shown.exit_code == 0, shown.output
        found = rows(shown.stdout)
        assert found["original", "hashes"] == ["holds", "model.safetensors"]
        assert shown.stdout.count("prune equals mask") == passes


def test_what_is_no_result_is_refused(run, saved):
    shown = run("verify", saved("llama"), saved("llama"))
    assert shown.exit_code == 2
    assert "it is not a result of fxcompress" in shown.stderr


def _nudge(folder) -> None:
    """Move one weight by one part in a million."""
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * (1 + 1e-6) + torch.zeros(())
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_pruned_weights_are_held_to_their_patterns_and_all_others_to_their_values(run, saved, tmp_path):
    result = tmp_path / "pruned"
    passes = ["--pass", "RemoveLayers(layers=[0])", "--pass", "PruneWeights(pattern='2:4', method='magnitude')"]
    run("compress", saved("llama"), "-o", result, *passes)
    shown = run("verify", saved("llama"), result)
    assert shown.exit_code == 0, shown.output
    found = rows(shown.stdout)
    assert found["result", "zeros are where the plan asks for them"][0] == "holds"
    assert found["result", "weights equal the replay's"][0] == "holds"
    file = result / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.mlp.up_proj.weight"] += 1e-3
    save_file(tensors, file, {"format": "pt"})
    edit(result, lambda m: m["sha256"].update({file.name: sha256(file)}))
    verdict, detail = rows(run("verify", saved("llama"), result).stdout)[
        "result", "zeros are where the plan asks for them"
    ]
    assert verdict == "FAILS"
    assert "model.layers.0.mlp.up_proj.weight has" in detail
