"""Files of a model that are cut, mixed up, missing, or something else than their name says."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.mishaps.place import RESULT, Mishap, Place

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
PARTS = ("a.safetensors", "b.safetensors")

Tensors = dict[str, torch.Tensor]


def shard(place: Place, also_in_b: tuple[str, ...] = ()) -> None:
    """Spread the weights over two files; some tensors may be in both."""
    tensors = load_file(place.model / WEIGHTS)
    (place.model / WEIGHTS).unlink()
    names = sorted(tensors)
    chosen = dict(zip(PARTS, (names[::2], sorted({*names[1::2], *also_in_b})), strict=True))
    for file, part in chosen.items():
        save_file({name: tensors[name] for name in part}, place.model / file, metadata={"format": "pt"})
    write_index(place, {name: file for file, part in reversed(chosen.items()) for name in part})


def write_index(place: Place, where: dict[str, str]) -> None:
    (place.model / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))


def with_index(change: Callable[[dict[str, str]], object]) -> Callable[[Place], None]:
    """Shard, and say something else in the index."""

    def make(place: Place) -> None:
        shard(place)
        where = json.loads((place.model / INDEX).read_text())["weight_map"]
        change(where)
        write_index(place, where)

    return make


def with_tensors(change: Callable[[Tensors], object]) -> Callable[[Place], None]:
    def make(place: Place) -> None:
        tensors = load_file(place.model / WEIGHTS)
        change(tensors)
        save_file(tensors, place.model / WEIGHTS, metadata={"format": "pt"})

    return make


def flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def cut(place: Place) -> None:
    os.truncate(place.model / WEIGHTS, (place.model / WEIGHTS).stat().st_size - 50)


def swap(place: Place) -> None:
    shard(place)
    a, b = (place.model / name for name in PARTS)
    contents = a.read_bytes(), b.read_bytes()
    a.write_bytes(contents[1])
    b.write_bytes(contents[0])


def lose_a_shard(place: Place) -> None:
    shard(place)
    (place.model / PARTS[1]).unlink()


def pickle_instead(place: Place) -> None:
    (place.model / WEIGHTS).unlink()
    torch.save({}, place.model / "pytorch_model.bin")


def link_out(place: Place, name: str) -> None:
    (place.root / "elsewhere").mkdir()
    (place.model / name).rename(place.root / "elsewhere" / name)
    (place.model / name).symlink_to(place.root / "elsewhere" / name)


def link_in_a_circle(place: Place) -> None:
    (place.model / WEIGHTS).unlink()
    (place.model / WEIGHTS).symlink_to(place.model / WEIGHTS)


def folder_instead(place: Place) -> None:
    (place.model / WEIGHTS).unlink()
    (place.model / WEIGHTS).mkdir()


def pipe_instead(place: Place) -> None:
    (place.model / CONFIG).unlink()
    os.mkfifo(place.model / CONFIG)


def keep_both(place: Place) -> None:
    whole = (place.model / WEIGHTS).read_bytes()
    shard(place)
    (place.model / WEIGHTS).write_bytes(whole)


def huge_header(place: Place) -> None:
    (place.model / WEIGHTS).write_bytes((10**15).to_bytes(8, "little") + b"{}")


UP = "model.layers.0.mlp.up_proj.weight"
DEEP = "model.layers.11.mlp.up_proj.weight"
NORM = "model.norm.weight"
case = partial(Mishap, "files")

MISHAPS = (
    case("weights cut short", "is damaged or cut short", cut),
    case("weights of no bytes", "(0 bytes) is damaged or cut short", lambda p: (p.model / WEIGHTS).write_bytes(b"")),
    case("a bit of the header flipped", "is damaged or cut short", lambda p: flip(p.model / WEIGHTS, 12)),
    case("a header that claims a petabyte", "its header would be of 1,000,000,000,000,000 bytes", huge_header),
    case("two shards swapped", "in b.safetensors, but it is in a.safetensors", swap),
    case("a shard missing", "b.safetensors is missing: the index names 2 files", lose_a_shard),
    case("a tensor in two shards", "is in both a.safetensors and b.safetensors", partial(shard, also_in_b=(UP, NORM))),
    case(
        "an index with a tensor too many",
        "names extra.weight, which is not in",
        with_index(lambda w: w.update({"extra.weight": PARTS[0]})),
    ),
    case("an index with a tensor too few", f"does not name {NORM}", with_index(lambda w: w.pop(NORM))),
    case(
        "an index that leads out of the folder",
        "names a file outside its directory: ../b.safetensors",
        with_index(lambda w: w.update({NORM: "../b.safetensors"})),
    ),
    case("an index that is a list", "is not an index of weights", lambda p: (p.model / INDEX).write_text("[]")),
    case("weights whole and sharded", "has both model.safetensors and model.safetensors.index.json", keep_both),
    case("a pickle instead of weights", "pytorch_model.bin is a pickle and may run code", pickle_instead),
    case("no weights", "has no weights, neither model.safetensors nor", lambda p: (p.model / WEIGHTS).unlink()),
    case(
        "weights that are a link out of the folder",
        "is a link to a file outside its directory",
        partial(link_out, name=WEIGHTS),
    ),
    case(
        "a config that is a link out of the folder",
        "is a link to a file outside its directory",
        partial(link_out, name=CONFIG),
    ),
    case("weights that are a link to themselves", "has no weights, neither model.safetensors nor", link_in_a_circle),
    case("a folder where weights should be", "has no weights, neither model.safetensors nor", folder_instead),
    case("a pipe where the config should be", "holds no config.json", pipe_instead),
    case("a tensor missing", f"1 tensor is missing from the weights: {NORM}", with_tensors(lambda t: t.pop(NORM))),
    case(
        "layers that the config does not count",
        "2 tensors are of layers that the config does not count: model.layers.7.mlp.up_proj.weight",
        with_tensors(lambda t: t.update({UP.replace("0", "7"): t[UP].clone(), DEEP: t[UP].clone()})),
    ),
    case(
        "a tensor that no class of the model knows",
        "1 tensor is in the files and not in the model, and left out: value_head.weight",
        with_tensors(lambda t: t.update({"value_head.weight": t[UP].clone()})),
        ends="0",
        left=RESULT,
    ),
    case(
        "a tensor of another shape",
        f"{NORM} is (24,), not (48,)",
        with_tensors(lambda t: t.update({NORM: t[NORM][:24].clone()})),
    ),
    case(
        "a tensor of whole numbers",
        f"quantised: {UP} is stored as torch.int32",
        with_tensors(lambda t: t.update({UP: t[UP].int()})),
    ),
    case(
        "values that are NaN or Inf",
        f"{UP} (80, 48) holds 2 values that are NaN or Inf",
        with_tensors(lambda t: t[UP].view(-1)[:2].copy_(torch.tensor([torch.nan, torch.inf]))),
    ),
    case(
        "a model that is not there",
        "does not exist: a model is a directory with config.json",
        lambda p: setattr(p, "model", p.root / "nowhere"),
    ),
)
