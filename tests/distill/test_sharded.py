"""Several processes train as one does: the same losses and weights, also after one was killed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import fxcompress
from fxcompress import CompressError, Objective, Training
from fxcompress.distillation.float8 import Float8
from fxcompress.distillation.prepared import _require_spread
from fxcompress.distillation.ranks import Ranks
from fxcompress.distillation.rows import Rows
from fxcompress.distillation.sharded import steps_of
from fxcompress.passes import PruneWeights
from fxcompress.sparse import broken
from tests import models

RANKED, ROOT = Path(__file__).parent / "ranked.py", Path(__file__).parents[2]
SIX: dict[str, Any] = {"steps": 6, "learning_rate": 3e-3, "log_every": 1, "save_every": 2, "device": "cpu"}
TOKENS = 12


def rows(padded: bool = True) -> list[dict[str, torch.Tensor]]:
    """Sixteen, some of them shorter than others, so that processes have different numbers of tokens."""
    lengths = [TOKENS - (5 * i % 7 if padded else 0) for i in range(16)]
    return [{"input_ids": ids[:n][None]} for ids, n in zip(models.ids(16, TOKENS), lengths, strict=True)]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Directories of a student and its teacher."""
    folder = tmp_path_factory.mktemp("models")

    def saved(name: str) -> tuple[Path, Path]:
        pair = folder / f"{name}-student", folder / f"{name}-teacher"
        for place, seed in zip(pair, (1, 0), strict=True):
            if not place.exists():
                models.tiny(name, seed).save_pretrained(place)
        return pair

    return saved


def torchrun(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Two processes on this machine; CompletedProcess of what started them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    return subprocess.run(
        [*command, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=300
    )


def by_two(tmp_path: Path, pair: tuple[Path, Path], data: Any = None, **spec: Any) -> Any:
    """What two processes find, each with half of a batch; ``failed`` asks for what they say instead."""
    failed = spec.pop("failed", False)
    spec["training"] = SIX | {"batch_size": 2} | spec.get("training", {})
    spec["data"] = [{name: x.tolist() for name, x in row.items()} for row in data or rows()]
    spec |= {"student": str(pair[0]), "teacher": str(pair[1]), "report": str(tmp_path / "report.json")}
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    ran = torchrun(RANKED, tmp_path / "spec.json")
    assert (ran.returncode != 0) == failed, ran.stderr[-5000:]
    if failed:
        return ran
    found = json.loads((tmp_path / "report.json").read_text())
    return found | {"weights": load_file(tmp_path / "report.json.safetensors"), "stdout": ran.stdout}


def by_one(pair: tuple[Path, Path], **options: Any) -> Any:
    training = Training(**SIX | {"batch_size": 4} | options.pop("training", {}))
    return fxcompress.distill(*pair, rows(), training=training, **options)


def apart(one: Any, two: Any) -> tuple[float, float]:
    """Largest differences of losses and of weights."""
    assert [step for step, _ in one.losses] == [step for step, _ in two["losses"]]
    losses = max(abs(a - b) for (_, a), (_, b) in zip(one.losses, two["losses"], strict=True))
    state = one.student.program.state
    assert state.keys() == two["weights"].keys()
    return losses, max(float((state[name].detach() - value).abs().max()) for name, value in two["weights"].items())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "nemotron_h", "zamba2"])  # tied, of several kinds, layers that share weights
def test_two_processes_train_as_one_does(places, tmp_path, name):
    losses, weights = apart(by_one(places(name)), by_two(tmp_path, places(name)))
    assert losses < 1e-4
    assert weights < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("training", "objective"),
    [
        ({"accumulation": 2, "log_every": 2, "gradient_checkpointing": True, "chunk": 5}, {"temperature": 2.0}),
        ({"warmup": 2, "clip": 0.1}, {"ce": 0.5, "states": 0.5, "pairs": ((0, 0), (2, 2))}),
    ],
)
def test_with_all_that_a_step_may_have(places, tmp_path, training, objective):
    one = by_one(places("llama"), training=training, objective=Objective(**objective))
    half = training | {"batch_size": 2}
    losses, weights = apart(one, by_two(tmp_path, places("llama"), training=half, objective=objective))
    assert losses < 1e-4
    assert weights < 1e-4


@pytest.mark.slow
def test_without_the_number_of_processes_in_its_loss_it_would_train_otherwise(places, tmp_path):
    """The planted fault. AdamW takes no notice of a factor, but clipping does: norms are between 0.8 and 1.9 here."""
    fault = """
real = Sharded._update
def update(self, step):
    for p in self.distiller.parameters():
        p.grad.div_(2)
    real(self, step)
Sharded._update = update
"""
    losses, weights = apart(by_one(places("llama")), by_two(tmp_path, places("llama"), fault=fault))
    assert losses > 1e-4
    assert weights > 1e-4


@pytest.mark.slow
def test_a_process_that_is_killed_loses_no_step_and_repeats_none(places, tmp_path):
    pair, out = places("llama"), {"out": str(tmp_path / "out")}
    whole = by_two(tmp_path, pair, out=str(tmp_path / "whole"))
    ran = by_two(tmp_path, pair, die_at=4, failed=True, **out)
    assert "line 3 " in ran.stdout
    assert "line 4 " not in ran.stdout
    again = by_two(tmp_path, pair, **out)
    assert [line.split()[1] for line in again["stdout"].splitlines() if line.startswith("line ")] == list("3456")
    assert again["losses"] == whole["losses"]
    assert all(again["weights"][name].equal(value) for name, value in whole["weights"].items())
    assert not (tmp_path / ".out.fxcompress").exists()
    assert {path.suffix for path in (tmp_path / "out").iterdir()} <= {".json", ".safetensors", ".html", ".txt"}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    shared = loaded.keys() & whole["weights"].keys()
    assert len(shared) > 20
    assert all(loaded[name].equal(whole["weights"][name]) for name in shared)


@pytest.mark.slow
def test_a_sparse_student_stays_sparse(places, tmp_path):
    _, teacher = places("llama")
    small = fxcompress.apply(models.tiny("llama"), [PruneWeights(method="magnitude", pattern="2:4")])
    small.save_pretrained(tmp_path / "small")
    by_two(tmp_path, (tmp_path / "small", teacher), training={"weight_decay": 0.5}, out=str(tmp_path / "out"))
    found = fxcompress.load(tmp_path / "out")
    assert found.program.sparse == small.program.sparse != {}
    assert broken(found.program, found.program.sparse) == {}


@pytest.mark.slow
def test_a_loss_that_is_no_number_in_one_process_stops_all(places, tmp_path):
    fault = """
real = Sharded._step
def step(self, number, batches):
    if number == 3 and rank == 1:
        forward = self.distiller.forward
        self.distiller.forward = lambda **batch: {"loss": forward(**batch)["loss"] * float("nan")}
    return real(self, number, batches)
Sharded._step = step
"""
    ran = by_two(tmp_path, places("llama"), fault=fault, out=str(tmp_path / "out"), failed=True)
    assert "the loss is nan at step 3: the last good state is in" in ran.stderr
    assert [place.name for place in (tmp_path / ".out.fxcompress" / "training").iterdir()] == ["checkpoint-2"]


@pytest.mark.slow
def test_an_offline_teacher_is_read_by_all(places, tmp_path):
    top, kept = {"top_k": 8}, tmp_path / "kept"
    one = by_one(places("llama"), objective=Objective(**top), offline=kept)
    losses, weights = apart(one, by_two(tmp_path, places("llama"), objective=top, offline=str(kept)))
    assert losses < 1e-4
    assert weights < 1e-4


@pytest.mark.slow
def test_an_offline_teacher_is_not_written_by_several(places, tmp_path):
    kept = str(tmp_path / "kept")
    ran = by_two(tmp_path, places("llama"), objective={"top_k": 8}, offline=kept, failed=True)
    assert f"{kept} is not there yet, and one process writes it" in ran.stderr


@pytest.mark.slow
def test_what_cannot_be_carried_out_is_refused_by_all_and_said_once(places, tmp_path):
    student, teacher = places("llama")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("the only copy")
    main = (sys.executable, "-c", "from fxcompress.cli import main; main()")
    ran = torchrun(
        "--no-python", *main, "distill", student, "--teacher", teacher, "--data", "x", "-o", tmp_path / "out"
    )
    assert ran.stderr.count("error: ") == 1
    assert f"error: {tmp_path / 'out'} exists and is not an empty directory" in ran.stderr
    assert "SIGKILL" not in ran.stderr, "a process waited for the one that refused"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"float8": Float8(emulate=True)}, "FP8 over several processes is not here"),
        ({"compile": True}, "compiled models over several processes are not here"),
        ({"more": {"optim": "sgd"}}, "optim: several processes train without transformers' Trainer"),
    ],
)
def test_what_only_one_process_does_is_refused(options, said):
    with pytest.raises(CompressError, match=said):
        _require_spread(Training(**options))


def test_a_step_takes_rows_for_every_process():
    with pytest.raises(
        CompressError, match="the data has 16 rows and a step takes 18: 9 in a batch, 1 batches in each"
    ):
        Training(batch_size=9).number_of_steps(16, processes=2)


def parts(world: int, batch_size: int, accumulation: int = 1, steps: int = 9) -> list[list[list[int]]]:
    """Rows of each process in each step."""
    data = Rows([{"input_ids": torch.tensor([i, i])} for i in range(22)])
    training = Training(batch_size=batch_size, accumulation=accumulation)
    found = [steps_of(data, training, Ranks(rank, world)) for rank in range(world)]
    return [[[row for batch in next(own) for row in batch["row"].tolist()] for own in found] for _ in range(steps)]


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_the_rows_of_every_step_as_one_takes_them(world):
    for alone, shared in zip(parts(1, 4), parts(world, 4 // world), strict=True):
        assert alone[0] == [row for own in shared for row in own]


def test_no_row_comes_twice_in_an_epoch_and_each_epoch_has_an_order_of_its_own():
    steps = parts(2, 2, accumulation=2)  # 22 rows are 5 batches of 4: steps of 2, 2 and 1 batches
    epochs = [[row for step in steps[i : i + 3] for own in step for row in own] for i in (0, 3, 6)]
    assert [len(set(epoch)) for epoch in epochs] == [len(epoch) for epoch in epochs] == [20] * 3
    assert epochs[0] != epochs[1] != epochs[2]
