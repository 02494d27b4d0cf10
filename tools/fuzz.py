"""Random programs against the algebra of axes, for as long as wanted:

    .venv/bin/python tools/fuzz.py run --count 100000 --jobs 2    every law on so many programs; finds are made small
    .venv/bin/python tools/fuzz.py mutants                        how many programs each planted mistake takes
    .venv/bin/python tools/fuzz.py complete llama mamba2          what is pinned although it could be cut: to be read
    .venv/bin/python tools/fuzz.py coverage qwen3                 the ops of a model that have no rule

Each writes its numbers with ``--json FILE``. The programs and the laws are in ``tests/programs``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for tests.programs and tests.models

from fxcompress import capture, graph, verify  # noqa: E402
from fxcompress.axes import AxisMap, Group  # noqa: E402
from fxcompress.checkpoint import read_checkpoint  # noqa: E402
from fxcompress.program import Program  # noqa: E402
from fxcompress.rule import RULES, op_name  # noqa: E402
from tests import models  # noqa: E402
from tests.mutants import MUTANTS, Mutant  # noqa: E402
from tests.programs import number_of_steps, seeded  # noqa: E402
from tests.programs.builder import Trial  # noqa: E402
from tests.programs.laws import Find, check, check_groups, difference, outputs  # noqa: E402
from tests.programs.laws import run as run_program  # noqa: E402

CHUNK = 50


def run(count: int, seed: int, jobs: int) -> dict[str, Any]:
    """Check programs seed, seed + 1, ... and report what does not hold."""
    start, done, groups, finds = time.monotonic(), 0, 0, []
    for checked, found in _map(jobs, _check_chunk, range(seed, seed + count, CHUNK)):
        done, groups = min(done + CHUNK, count), groups + checked
        for find in found:
            print(f"\n{find['reproduce']}\n    {find['law']} [{find['groups']}]: {find['said']}\n{find['program']}")
        finds += found
        rate = done / (time.monotonic() - start)
        _progress(f"{done} programs, {groups} groups, {len(finds)} programs with finds, {rate:.1f} a second")
    print()
    return {"programs": done, "groups": groups, "seconds": round(time.monotonic() - start), "finds": finds}


def _check_chunk(first: int) -> tuple[int, list[dict[str, str]]]:
    groups, finds = 0, []
    for seed in range(first, first + CHUNK):
        program = seeded(seed)
        found = next(check(program, seed), None)
        groups += 0 if found and found.groups == "the analysis" else len(_free(program))
        if found:
            finds.append(_reduced(seed, found))
    return groups, finds


def _reduced(seed: int, find: Find) -> dict[str, str]:
    """The find again with as few steps as it takes."""
    steps = list(range(number_of_steps(seed)))
    for step in list(steps):
        fewer = [s for s in steps if s != step]
        if again := next((f for f in check(seeded(seed, fewer), seed) if f.law == find.law), None):
            steps, find = fewer, again
    call = f"seeded({seed}, steps={tuple(steps)})"
    return {"reproduce": call, **asdict(find), "program": _text(seeded(seed, steps))}


def _text(program: Trial) -> str:
    shapes = {n: tuple(n.meta["val"].shape) for n in program.graph.nodes if isinstance(n.meta.get("val"), torch.Tensor)}
    return "\n".join(f"    {n.format_node() or n.name}   {shapes.get(n, '')}" for n in program.graph.nodes)


def _free(program: Program) -> list[Group]:
    return [group for group in program.get(AxisMap).groups if not group.pinned]


def mutants(count: int, jobs: int) -> list[dict[str, Any]]:
    """Programs until each mutant is caught, and the law that catches it."""
    rows = []
    for row in _map(jobs, _catch, [(i, count) for i in range(len(MUTANTS))]):
        rows.append(row)
        outcome = f"{row['programs']} programs, {row['law']}" if row["law"] else f"survives: {row['survives']}"
        print(f"{row['mutant']}: {outcome}", flush=True)
    print(f"{sum(bool(row['law']) for row in rows)} of {len(rows)} caught")
    return rows


def _catch(job: tuple[int, int]) -> dict[str, Any]:
    mutant: Mutant = MUTANTS[job[0]]
    row: dict[str, Any] = {"mutant": mutant.name, "programs": job[1], "law": "", "survives": mutant.survives}
    with mutant.plant():
        for seed in range(job[1]):
            if find := next(check(seeded(seed), seed), None):
                return row | {"programs": seed + 1, "law": find.law}
    return row


def complete(names: Sequence[str], count: int, seed: int) -> dict[str, dict[str, Any]]:
    """By reason: of the pinned groups, how many could be permuted and cut as they are, or permuted with other slots."""
    rows: dict[str, dict[str, Any]] = defaultdict(lambda: {"pinned": 0, "cuttable": 0, "permutable": 0, "examples": []})
    programs = [(f"seeded({s})", seeded(s)) for s in range(seed, seed + count)]
    for name, program in [*programs, *((name, _family(name)) for name in names)]:
        for group in program.get(AxisMap).groups:
            if group.pinned and group.size > 1:
                row = rows[_reason(group)]
                row["pinned"] += 1
                kind = _allowance(program, group)
                if kind:
                    row[kind] += 1
                    row["examples"] = [*row["examples"], f"{name} {group.key}"][:3]
    for reason, row in sorted(rows.items(), key=lambda item: -item[1]["cuttable"]):
        print(f"{row['pinned']:6} pinned, {row['cuttable']} cuttable, {row['permutable']} permutable: {reason}")
        for example in row["examples"]:
            print(f"           {example}")
    return dict(rows)


def _reason(group: Group) -> str:
    """The sentence without the name of the node, and without sizes."""
    sentence = re.sub(r", at (\w+) \((.+)\)$", r", at \2", group.pinned[0])
    return re.sub(
        r"\b[a-z_0-9]*_(default|int|tensor|padding)[_0-9]*\b", "an op", re.sub(r"\d+( x \d+)*", "n", sentence)
    )


def _allowance(program: Trial, group: Group) -> str:
    axes = program.get(AxisMap)
    kept = axes.groups
    axes.groups = [replace(g, pinned=()) if g.key == group.key else g for g in kept]
    try:
        finds = [f for k in range(2) for f in check_groups(program, [axes[group.key]], random.Random(k))]
    finally:
        axes.groups = kept
    if not any(find.law in ("permutation", "cut", "runs") for find in finds):
        return "cuttable"
    return "permutable" if len(program.state) <= 12 and _order_is_free(program, group) else ""


@torch.no_grad()
def _order_is_free(program: Trial, group: Group) -> bool:
    """Can a slot be put into another order, if some of the dims of the same size are put into it too?"""
    slot = next((s for s in group.slots if program.state[s.name].shape[s.dim] == group.size), None)
    if slot is None:
        return False
    before, whole = outputs(program, run_program(program)), dict(program.state)
    order = torch.arange(group.size).roll(1)
    others = [(n, d) for n, t in whole.items() for d in range(t.dim()) if t.shape[d] == group.size]
    others = [place for place in others if place != (slot.name, slot.dim)][:7]
    try:
        for subset in range(2 ** len(others)):
            places = [(slot.name, slot.dim), *(p for i, p in enumerate(others) if subset >> i & 1)]
            tensors = {name: tensor.detach() for name, tensor in whole.items()}
            for name, dim in places:
                tensors[name] = tensors[name].index_select(dim, order)
            for name in whole:
                program.set_state(name, torch.nn.Parameter(tensors[name], requires_grad=False))
            if difference(before, outputs(program, run_program(program))) < 1e-9:
                return True
    finally:
        for name, tensor in whole.items():
            program.set_state(name, tensor)
    return False


@torch.no_grad()
def _family(name: str) -> Trial:
    """A tiny model of tests/models.py as a trial: every node has the value that it takes on a probe."""
    program = models.captured(name)
    inputs = iter(verify.probe(program, length=7))
    copy = program.clone()
    for node in copy.graph.nodes:
        if node.op == "placeholder":
            node.meta = {**node.meta, "val": next(inputs)}
    fields = {f: getattr(copy, f) for f in ("module", "inputs", "out_spec", "origin", "names", "unused")}
    trial = Trial(**fields)
    for node, value in run_program(trial).items():
        node.meta = {**node.meta, "val": value}
    return trial


def coverage(name: str) -> list[dict[str, Any]]:
    """The ops of a model without a rule: how often they occur, and in which modules."""
    program = models.captured(name) if name in models.CONFIGS else capture(read_checkpoint(name).on_meta())
    calls = [n for n in graph.calls(program.graph) if any(True for _ in graph.tensors(n.meta.get("val")))]
    unknown = [n for n in calls if n.target not in RULES and torch.Tag.pointwise not in getattr(n.target, "tags", ())]
    counts = Counter(op_name(node.target) for node in unknown)
    rows = []
    for op, times in counts.most_common():
        where = list(dict.fromkeys(graph.module_path(n) or "the model" for n in unknown if op_name(n.target) == op))
        rows.append({"op": op, "count": times, "modules": where})
        print(f"{times:6} {op}: {', '.join(where[:4])}{', ...' if len(where) > 4 else ''}")
    print(f"{len(calls) - len(unknown)} of {len(calls)} calls have a rule")
    return rows


def _map(jobs: int, function: Any, items: Iterable[Any]) -> Iterator[Any]:
    """Results as they come, from this process or from several."""
    if jobs == 1:
        yield from map(function, items)
        return
    with multiprocessing.get_context("spawn").Pool(jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.imap_unordered(function, items)


def _progress(text: str) -> None:
    print(f"\r{text}" if sys.stdout.isatty() else text, end="" if sys.stdout.isatty() else "\n", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    options: dict[str, dict[str, Any]] = {
        "run": {"--count": 100_000, "--seed": 0, "--jobs": 2},
        "mutants": {"--count": 3000, "--jobs": 2},
        "complete": {"names": [], "--count": 300, "--seed": 0},
        "coverage": {"name": ""},
    }
    for command, defaults in options.items():
        sub = commands.add_parser(command, help=globals()[command].__doc__)
        for option, default in defaults.items():
            kind: dict[str, Any] = {"nargs": "*"} if default == [] else {}
            sub.add_argument(option, **(kind if isinstance(default, list | str) else {"type": int, "default": default}))
        sub.add_argument("--json", type=Path)
    given = vars(parser.parse_args())
    command, file = given.pop("command"), given.pop("json")
    torch.set_num_threads(1)
    result = globals()[command](**given)
    if file:
        file.write_text(json.dumps(result, indent=1) + "\n")
    return int(command == "run" and bool(result["finds"]))


if __name__ == "__main__":
    sys.exit(main())
