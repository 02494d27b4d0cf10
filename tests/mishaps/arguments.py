"""What a shell asks for does not exist, contradicts itself, or cannot be."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.mishaps.place import FFN, Mishap, Place

ACTIVATION = "PruneFFN(ratio=0.25, score='activation')"


def asks(*options: object) -> Callable[[Place], object]:
    return lambda place: place.compress(*options)


def one(text: str) -> Callable[[Place], object]:
    return asks("--pass", text)


def by_recipe(place: Place) -> object:
    return place.compress("--recipe", place.root / "r.yaml")


def write_recipe(text: str) -> Callable[[Place], object]:
    return lambda place: (place.root / "r.yaml").write_text(text)


def on_text(*options: object) -> Callable[[Place], object]:
    def ask(place: Place) -> object:
        return place.compress("--pass", ACTIVATION, "--calibration", place.text, *options)

    return ask


def write_text(content: bytes) -> Callable[[Place], object]:
    return lambda place: place.text.write_bytes(content)


def write_statistics(place: Place) -> None:
    (place.root / "statistics.txt").write_text("mean: 1.0")


def with_statistics(place: Place, name: str = "statistics.txt") -> object:
    return on_text("--length", 8, "--samples", 2, "--statistics", place.root / name)(place)


def lose_tokenizer(place: Place) -> None:
    for file in place.model.glob("tokenizer*"):
        file.unlink()


def other_tokenizer(place: Place) -> None:
    file = place.model / "tokenizer.json"
    file.write_text(file.read_text().replace('"w7": 7,', '"w7": 900,'))


def broken_tokenizer(place: Place) -> None:
    (place.model / "tokenizer.json").write_text("{}")


def output_at(where: Callable[[Place], Path]) -> Callable[[Place], None]:
    return lambda place: setattr(place, "out", where(place))


def taken(place: Place) -> None:
    place.out.mkdir()
    (place.out / "thesis.txt").write_text("the only copy")


case = partial(Mishap, "arguments")

MISHAPS = (
    case(
        "a pass that there is not",
        "there is no pass 'PruneFNN' (did you mean PruneFFN",
        ask=one("PruneFNN(ratio=0.25)"),
    ),
    case("an option that a pass has not", "PruneFFN has no option 'ration'", ask=one("PruneFFN(ration=0.25)")),
    case("a pass that is code", "is not a pass: write a name and options", ask=one("__import__('os').system('true')")),
    case("a ratio above one", "ratio=1.25 is outside [0, 1)", ask=one("PruneFFN(ratio=1.25)")),
    case("a ratio below nought", "ratio=-0.1 is outside [0, 1)", ask=one("PruneFFN(ratio=-0.1)")),
    case("a ratio beyond numbers", "ratio=inf is outside [0, 1)", ask=one("PruneFFN(ratio=1e999)")),
    case("a ratio in words", "it should be a valid number", ask=one("PruneFFN(ratio='much')")),
    case(
        "both ratio and size",
        "say how much by exactly one of ratio= (the part to remove) and size=",
        ask=one("PruneFFN(ratio=0.25, size=10)"),
    ),
    case(
        "neither ratio nor size",
        "say how much by exactly one of ratio= (the part to remove) and size=",
        ask=one("PruneFFN()"),
    ),
    case("more than there is", "size=81 is more than the 80 there are", ask=one("PruneFFN(size=81)")),
    case("nothing left", "size=0 leaves nothing", ask=one("PruneFFN(size=0)")),
    case("a size beyond numbers", "is more than the 80 there are", ask=one(f"PruneFFN(size={10**30})")),
    case("a step of nought", "round_to=0 is not a positive step", ask=one("PruneFFN(ratio=0.25, round_to=0)")),
    case("a score that there is not", "score='best' is unknown", ask=one("PruneFFN(ratio=0.25, score='best')")),
    case(
        "a scope that there is not",
        "PruneFFN.scope='world': it should be 'layer' or 'global'",
        ask=one("PruneFFN(ratio=0.25, scope='world')"),
    ),
    case(
        "layers that are not there",
        "lies wholly under layers='model.layers.9'",
        ask=one("PruneFFN(ratio=0.25, layers='model.layers.9')"),
    ),
    case("a layer out of range", "layer 7 is out of range, the model has 1", ask=one("RemoveLayers(layers=[7])")),
    case("the only layer removed", "RemoveLayers would remove all 1 layers", ask=one("RemoveLayers(layers=[0])")),
    case(
        "an axis that is pinned",
        "model.embed_tokens.weight[0] is pinned, it is a dim of the model's output",
        ask=one("PruneAxes(groups='model.embed_tokens.weight[0]', size=64)"),
    ),
    case("a kind of axis that the model lacks", "no ssm head in this model", ask=one("PruneSSMHeads(ratio=0.25)")),
    case(
        "neither pass nor recipe", "say what to do by one of", ask=lambda p: p.shell("compress", p.model, "-o", p.out)
    ),
    case("both pass and recipe", "say what to do by one of", ask=asks("--pass", FFN, "--recipe", "r.yaml")),
    case("a recipe that is not there", "the recipe nowhere.yaml cannot be read", ask=asks("--recipe", "nowhere.yaml")),
    case("a recipe that is no YAML", "not YAML: while parsing a flow node", write_recipe("passes: [\n"), by_recipe),
    case(
        "a recipe of a later version",
        "recipe.version=9",
        write_recipe("version: 9\npasses: [PruneFFN: {ratio: 0.1}]"),
        by_recipe,
    ),
    case(
        "a recipe with objects",
        "is a tag, which is not read here",
        write_recipe("passes: !!python/name:os.system x"),
        by_recipe,
    ),
    case("a target that there is not", "Invalid value for '--target'", ask=asks("--target", "onnx")),
    case("no output", "-o OUT is missing", ask=lambda p: p.shell("compress", p.model, "--pass", FFN)),
    case("shards of no size", "max_shard_size='5 bananas' is no size", ask=asks("--max-shard-size", "5 bananas")),
    case("shards of nought", "max_shard_size='0' is no size", ask=asks("--max-shard-size", "0")),
    case("shards beyond numbers", "is no size", ask=asks("--max-shard-size", "9" * 400)),
    case("shards of part of a byte", "is no size", ask=asks("--max-shard-size", "0.5")),
    case("an output that is taken", "exists and is not an empty directory", taken),
    case("an output that is a file", "exists and is not an empty directory", lambda p: p.out.write_text("mine")),
    case("an output under a file", "text.txt is not a directory", output_at(lambda p: p.text / "out")),
    case("an output that is the model", "exists and is not an empty directory", output_at(lambda p: p.model)),
    case("an output inside the model", "lies in the directory of the model", output_at(lambda p: p.model / "small")),
    case(
        "an output that is a link to nowhere",
        "there/out is a link; choose another output",
        lambda p: p.out.symlink_to(p.root / "nowhere"),
    ),
    case(
        "a file in the journal's place",
        ".out.fxcompress is where the journal goes, and is no directory: remove it",
        lambda p: (p.out.parent / ".out.fxcompress").write_text("mine"),
    ),
    case(
        "weights pruned by no text, by statistics alone",
        "PruneWeights runs the pruned model on text, statistics do not do: --calibration FILE",
        ask=asks("--pass", "PruneWeights(sparsity=0.5)", "--statistics", "s.safetensors"),
    ),
    case(
        "a pattern that does not divide the columns",
        "7:11 needs groups of 11 weights, and rows of 48 have 4 left over",
        ask=one("PruneWeights(pattern='7:11', method='magnitude')"),
    ),
    case("a model packed that has no zeros", "add PruneWeights to the passes", ask=asks("--packed")),
    case("no text to score by", "needs text to run on: --calibration FILE", ask=one(ACTIVATION)),
    case("samples of no text", "--samples and --length are about --calibration FILE", ask=asks("--samples", 4)),
    case("a text that is not there", "the calibration text", lambda p: p.text.unlink(), on_text()),
    case("a text that is a folder", "the calibration text", lambda p: (p.text.unlink(), p.text.mkdir()), on_text()),
    case("a text of other bytes", "the calibration text", write_text(b"\xff\xfe"), on_text()),
    case(
        "a text too short",
        "has 3 tokens, enough for 0 samples of 8; 64 are asked for",
        write_text(b"w4 w5 w6"),
        on_text("--length", 8),
    ),
    case("a text of nothing", "is empty: the tokenizer makes no token of it", write_text(b""), on_text()),
    case(
        "pieces longer than the model allows",
        "sequences of 200 tokens, the model allows 128",
        write_text(b"w4 w5 " * 300),
        on_text("--length", 200, "--samples", 1),
    ),
    case("statistics that are none", "damaged or cut short", write_statistics, with_statistics),
    case("statistics into nowhere", "has no directory", ask=lambda p: with_statistics(p, "nowhere/statistics")),
    case("pieces of endless length", "enough for 0 samples", ask=on_text("--length", 10**30)),
    case("no tokenizer", "has no tokenizer that can be read", lose_tokenizer, on_text("--length", 8)),
    case("a tokenizer that is none", "has no tokenizer that can be read", broken_tokenizer, on_text("--length", 8)),
    case(
        "a tokenizer of another model",
        "the calibration has the token id 900, the model has 96 ids",
        other_tokenizer,
        on_text("--length", 8, "--samples", 4),
    ),
)
