"""What every experiment trains: arms differ in what the experiment asks, and in nothing else."""

import importlib
from typing import Any

import pytest

import fxcompress
from fxcompress import Objective
from tests.experiments.bench import KNOWN, at_one_rate, cloned, run


def test_shapes_differ_in_shape_alone(found: Any, arguments: Any, trainings: Any, monkeypatch: pytest.MonkeyPatch):
    assert set(run("shapes", arguments, monkeypatch)) == set(KNOWN)
    assert all(training.teacher is not None for training in trainings)
    assert {(t.seed, t.part, t.text, t.objective) for t in trainings} == {(0, 1 / 40, "text", Objective())}


def test_scratch_has_no_teacher_and_its_share_of_the_tokens(
    found: Any, arguments: Any, trainings: Any, monkeypatch: pytest.MonkeyPatch
):
    assert len(run("tokens", arguments, monkeypatch)) == 4
    assert [(t.part, t.teacher is None) for t in trainings] == [
        (1 / 40, False),
        (1 / 40, True),
        (1 / 10, True),
        (1.0, True),
    ]


def test_losses_differ_in_the_loss_alone(found: Any, arguments: Any, trainings: Any, monkeypatch: pytest.MonkeyPatch):
    assert set(run("losses", arguments, monkeypatch)) == {
        "forward KL",
        "cross-entropy",
        "forward KL + cross-entropy",
    }
    kl, ce, both = trainings
    assert (kl.objective, ce.teacher, both.objective) == (Objective(), None, Objective(ce=1.0))
    assert kl.teacher is not None
    assert both.teacher is not None
    assert {training.part for training in (kl, ce, both)} == {1 / 40}


def test_corrected_is_the_teacher_and_never_the_student(
    found: Any, arguments: Any, trainings: Any, monkeypatch: pytest.MonkeyPatch
):
    """A first weight of 77 tells the one that was."""
    lab = importlib.import_module("lab")
    plain = lab.Lab.trained

    def marked(self, model, seed, *of, **named):
        model = cloned(plain(self, model, seed, *of, **named))
        if seed == lab.CHOOSING + 1:
            next(model.parameters()).data[0, 0] = 77.0
        return model

    monkeypatch.setattr(lab.Lab, "trained", marked)
    run("correction", arguments, monkeypatch)
    _, corrected, was, alone = trainings
    assert next(corrected.teacher.parameters())[0, 0] == 77.0
    assert was.teacher is not None
    assert next(was.teacher.parameters())[0, 0] != 77.0
    assert alone.teacher is None
    assert {training.text for training in trainings} == {"other_text"}


def test_every_experiment_trains_and_they_share_what_was_trained(
    found: Any, arguments: Any, monkeypatch: pytest.MonkeyPatch
):
    lab = importlib.import_module("lab")
    monkeypatch.setattr(lab.Lab, "runs", at_one_rate)
    trained = []
    plain = lab.Lab.trained
    monkeypatch.setattr(lab.Lab, "trained", lambda *of, **named: trained.append(1) or plain(*of, **named))
    counts = {}
    for name in ("shapes", "losses", "tokens", "correction", "sparse"):
        fewer = {"METHODS": ("magnitude",)} if name == "sparse" else {"PARTS": {}} if name == "tokens" else {}
        before = len(trained)
        run(name, arguments, monkeypatch, **fewer)
        counts[name] = len(trained) - before
    # of losses and tokens one arm is a student of shapes
    assert counts == {"shapes": 2, "losses": 2, "tokens": 1, "correction": 4, "sparse": 2}


def test_lost_zeros_are_no_result(opened: Any, trainings: Any, monkeypatch: pytest.MonkeyPatch):
    sparse = importlib.import_module("sparse")
    for name, value in {"BATCH": 2, "CALIBRATION": 4}.items():
        monkeypatch.setattr(sparse, name, value)
    p = fxcompress.passes.PruneWeights(method="magnitude", pattern="2:4")
    assert sparse.recovered(opened, p, 0, 1e-2)["zeros"] == 0.5

    def losing(self, model, *of, **named):
        model = cloned(model)
        for weight in model.parameters():
            weight.data[weight == 0] = 1e-3
        return model

    monkeypatch.setattr(type(opened), "trained", losing)
    with pytest.raises(SystemExit, match="training lost zeros"):
        sparse.recovered(opened, p, 0, 1e-2)
