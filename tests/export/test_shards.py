"""Files written tensor by tensor are what the safetensors library writes and reads; no other file is left."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from fxcompress import CompressError
from fxcompress.export.pieces import Pieces
from fxcompress.export.shards import INDEX, Shard, pack, read_size, write_index, write_shard
from fxcompress.files import weight_files
from tests import models

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int8, torch.bool]
tensors = st.dictionaries(
    st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=8).filter(lambda n: n != "__metadata__"),
    st.builds(
        lambda shape, dtype: (torch.randn(shape) * 3).to(dtype),
        st.lists(st.integers(0, 4), max_size=3),
        st.sampled_from(DTYPES),
    ),
    min_size=1,
    max_size=6,
)


def on_meta(values):
    return {name: tensor.to("meta") for name, tensor in values.items()}


@given(tensors, st.integers(1, 200), st.randoms())
@settings(max_examples=60)
def test_values_in_any_order_are_read_back_bit_for_bit(tmp_path_factory, values, limit, random):
    folder = tmp_path_factory.mktemp("shards")
    shards = pack(on_meta(values), limit)
    for shard in shards:
        names = list(shard.tensors)
        random.shuffle(names)
        write_shard(folder, shard, ((name, values[name]) for name in names))
    write_index(folder, shards)
    back = {}
    for shard in shards:
        back |= load_file(folder / shard.file)
    assert back.keys() == values.keys()
    assert all(back[n].dtype == t.dtype and torch.equal(back[n], t) for n, t in values.items())
    assert weight_files(folder).keys() == values.keys()  # by the checks that are made of any checkpoint
    assert all(shard.bytes <= limit or sum(t.numel() > 0 for t in shard.tensors.values()) == 1 for shard in shards)


def test_a_file_is_as_long_as_the_librarys_own(tmp_path):
    values = {"a": torch.randn(3, 5), "b": torch.zeros(2, dtype=torch.bfloat16)}
    write_shard(tmp_path, Shard("ours.safetensors", on_meta(values)), values.items())
    save_file(values, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("given_values", "said"),
    [
        ({"a": torch.zeros(2, 3)}, "no value was given for b"),
        ({"a": torch.zeros(3, 2), "b": torch.zeros(1)}, r"a is torch.float32 \(3, 2\), not torch.float32 \(2, 3\)"),
        ({"a": torch.zeros(2, 3), "b": torch.zeros(1).half()}, "b is torch.float16"),
    ],
)
def test_a_file_of_other_tensors_than_its_header_says_gets_no_name(tmp_path, given_values, said):
    shard = Shard("x.safetensors", on_meta({"a": torch.zeros(2, 3), "b": torch.zeros(1)}))
    with pytest.raises(CompressError, match=said):
        write_shard(tmp_path, shard, given_values.items())
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize(("size", "bytes_"), [("5GB", 5 * 10**9), ("2gib", 2 << 30), (1000, 1000), ("1.5MB", 1500000)])
def test_sizes_are_read(size, bytes_):
    assert read_size(size) == bytes_


@pytest.mark.parametrize("size", ["", "big", "-1GB", 0, "5TB", None, True, "1e9"])
def test_what_is_no_size_is_refused(size):
    with pytest.raises(CompressError, match="is no size"):
        read_size(size)


@pytest.mark.parametrize("name", ["llama", "mixtral", "nemotron_h_moe", "deepseek_v3", "zamba2", "gpt2", "jamba"])
def test_a_model_is_written_as_its_class_writes_it(tmp_path, name):
    """Names, pieces and values as ``save_pretrained`` has them: experts one by one, tied tensors once."""
    model = models.tiny(name)
    with torch.device("meta"):
        pieces = Pieces(type(model)(model.config))
    state = model.state_dict()
    shards = pack(pieces.tensors, 50_000)
    for shard in shards:
        write_shard(tmp_path, shard, pieces.values(list(shard.tensors), state.__getitem__))
    model.save_pretrained(tmp_path / "theirs")
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    ours = {n: t for shard in shards for n, t in load_file(tmp_path / shard.file).items()}
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    assert len(shards) > 1


def test_the_index_says_which_file_has_which_tensor(tmp_path):
    shards = pack(on_meta({"a": torch.zeros(4), "b": torch.zeros(4)}), 16)
    write_index(tmp_path, shards)
    content = json.loads((tmp_path / INDEX).read_text())
    assert content["weight_map"] == {"a": shards[0].file, "b": shards[1].file}
    assert content["metadata"]["total_size"] == 32
