"""The algebra on programs that nobody thought of: any free group of any program may be permuted and cut.

The laws and their oracle are in ``tests/programs``. Long runs, and where a find becomes small: ``tools/fuzz.py``.
"""

from __future__ import annotations

import functools
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxcompress import verify
from fxcompress.allocate import fewest_kept
from fxcompress.axes import AxisMap
from fxcompress.plan import Step
from fxcompress.rewrite import rewrite
from fxcompress.rule import RULES
from tests.mutants import MUTANTS
from tests.programs import drawn, seeded
from tests.programs.builder import Trial
from tests.programs.laws import LAWS, check
from tests.programs.partial import run_partially
from tests.programs.symbolic import with_symbolic_batch

aten = torch.ops.aten

_SAMPLE = "a sample of tests/rules holds it"
NOT_GENERATED = {
    **dict.fromkeys(
        (aten.scatter.value, aten.scatter.src, aten.scatter_add.default, aten.slice_scatter.default), _SAMPLE
    ),
    aten.conv3d.default: "conv1d and conv2d share its rule",
    aten.empty.memory_format: "its values are not determined",
    aten.empty_like.default: "its values are not determined",
    aten.new_empty.default: "its values are not determined",
    **dict.fromkeys(
        (torch.ops.fxcompress.csr_linear.default, torch.ops.fxcompress.sparse24_linear.default),
        "it pins all that it has, and stands in programs that nothing is cut from any more",
    ),
}


@functools.cache
def programs(count: int = 600) -> list[Trial]:
    return [seeded(seed) for seed in range(count)]


@given(st.data())
@settings(max_examples=150)
def test_any_free_group_of_any_program_can_be_permuted_and_cut(data):
    program = drawn(lambda options: data.draw(st.sampled_from(list(options))))
    assert [str(find) for find in check(program)] == []


@given(st.integers(0, 2**32), st.integers(0, 100))
@settings(max_examples=100)
def test_a_seed_makes_such_a_program_too(seed, choice):
    assert [str(find) for find in check(seeded(seed), choice)] == []


def test_choices_on_two_dims_of_a_tensor_do_not_depend_on_each_other_in_a_circle():
    program = seeded(17552, steps=(0, 1, 3, 4, 6))  # has w[a, (b c)] where a might differ by c, and b by a
    assert [str(find) for find in check(program, 17552)] == []
    assert any(len(group.sizes) > 1 for group in program.get(AxisMap).groups)


def test_an_axis_that_is_two_letters_of_an_op_lets_no_choice_differ_along_it():
    program = seeded(46421, steps=(0, 1, 3))  # experts (gate-or-value neuron), by a shared weight
    assert [str(find) for seed in range(4) for find in check(program, seed)] == []


@pytest.mark.parametrize("seed", range(6))
def test_a_program_whose_batch_has_no_number_obeys_the_laws_of_verify(seed):
    program = with_symbolic_batch(seeded(seed, symbolic=True))
    if program is None:
        pytest.skip("the program says what its batch is")
    axes = program.get(AxisMap)
    for group in [g for g in axes.groups if not g.pinned and g.size // 2 >= fewest_kept(axes, g)]:
        step = Step(
            "cut", {group.key: torch.rand(group.sizes).argsort(-1)[..., : group.size // 2 or 1].sort(-1).values}
        )
        after = program.clone()
        rewrite(after, step)
        assert [str(law) for law in verify.check(program, after, step) if not law.holds] == []


def test_a_seed_is_a_program():
    again = seeded(7)
    assert str(again.graph) == str(seeded(7).graph)
    assert all(torch.equal(again.state[name], tensor) for name, tensor in seeded(7).state.items())


def test_a_step_can_be_left_out():
    assert len(seeded(7, steps=(0,)).graph.nodes) < len(seeded(7).graph.nodes)


def test_every_op_with_a_rule_is_generated():
    made = {node.target for program in programs() for node in program.graph.nodes}
    assert RULES.keys() - made == NOT_GENERATED.keys() & RULES.keys()


def test_most_programs_have_something_to_cut():
    free = [sum(not g.pinned for g in program.get(AxisMap).groups) for program in programs(100)]
    assert sum(n > 0 for n in free) >= 85
    assert sum(free) >= 250


def test_choices_that_differ_along_an_outer_axis_are_among_them():
    depths = Counter(len(g.sizes) for p in programs(100) for g in p.get(AxisMap).groups if not g.pinned)
    assert depths[2] >= 10


def test_a_program_is_put_back_after_a_rewrite():
    program = programs()[0]
    before, text = dict(program.state), str(program.graph)
    group = next(g for g in program.get(AxisMap).groups if not g.pinned)
    with program.rewritten(Step("cut", {group.key: torch.arange(group.size - 1)})):
        assert str(program.graph) != text or any(t.shape != before[n].shape for n, t in program.state.items())
    assert str(program.graph) == text
    assert all(torch.equal(before[name], tensor) for name, tensor in program.state.items())


@pytest.mark.parametrize("program", range(30))
def test_a_partial_program_of_which_all_is_there_is_the_program(program):
    """The oracle's meaning of every op is the op's, where nothing is absent."""
    program = programs()[program]
    there = {name: torch.ones(t.shape, dtype=torch.float64) for name, t in program.state.items()}
    for node, partial in run_partially(program.graph, there):
        several = isinstance(node.meta.get("val"), list | tuple)
        for pair, expected in zip(partial, node.meta["val"], strict=True) if several else [(partial, node.meta["val"])]:
            if pair is not None:
                assert pair[1].all()
                torch.testing.assert_close(pair[0], expected, rtol=1e-9, atol=1e-9)


QUICK = [mutant for mutant in MUTANTS if mutant.within <= 10]


@pytest.mark.parametrize("mutant", QUICK, ids=lambda m: m.name)
def test_a_planted_mistake_is_caught(mutant):
    with mutant.plant():
        assert any(find for seed in range(3 * mutant.within) for find in check(seeded(seed)))


def test_every_law_catches_a_mistake():
    caught = set()
    for mutant in QUICK:
        with mutant.plant():
            caught |= {find.law for seed in range(mutant.within) for find in check(seeded(seed))}
    assert caught == set(LAWS)
