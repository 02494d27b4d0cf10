"""Models spread over processes by FSDP2 (``fully_shard``), and the trained student in one piece again.

    student    a layer is gathered while it runs, forward and once more backward; embedding, last norm, head and the map
               of states belong to the ``Distiller``, and are there as long as it runs: its chunks use them backward too
    teacher    a layer is gathered while it runs; the rest is whole in every process

Each process opens both models on its CPU and brings a layer at a time to its device. Layers that share parameters are
gathered together; those of a teacher are whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import networkx as nx
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from fxcompress.distillation.distiller import Distiller
from fxcompress.distillation.ranks import Ranks
from fxcompress.distillation.states import layers_of
from fxcompress.distillation.student import Student
from fxcompress.distillation.teacher import Online
from fxcompress.distillation.training import Training
from fxcompress.distillation.zeros import Zeros
from fxcompress.errors import CompressError


def shard(distiller: Distiller, zeros: Zeros, training: Training, ranks: Ranks) -> None:
    """Spread a student and its teacher over all processes, in place. Raises CompressError for what cannot be spread."""
    device = training.where()
    mesh = init_device_mesh(device.type, (ranks.world,))
    _require_dims(distiller)
    narrow = training.computes_in() == torch.bfloat16
    # layers are sent in bfloat16 and their gradients in float32; the residual stream stays what autocast makes it
    policy = (
        MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        if narrow
        else MixedPrecisionPolicy()
    )
    for layers in _units(distiller.student):
        fully_shard(layers, mesh=mesh, mp_policy=policy)
    fully_shard(distiller, mesh=mesh)
    zeros.distribute(distiller.student)
    if isinstance(distiller.teacher, Online):
        for layers in _units(distiller.teacher.model):
            if len(layers) == 1:
                fully_shard(layers[0], mesh=mesh, reshard_after_forward=True)
        distiller.teacher.model.to(device)


def _units(model: nn.Module) -> list[list[nn.Module]]:
    """Layers that are gathered together, as a rule each alone; none where a model has no list of layers."""
    try:
        _, layers = layers_of(model)
    except CompressError:
        return []
    sharing: nx.Graph[nn.Module | int] = nx.Graph()
    for layer in layers:
        if found := [id(parameter) for parameter in layer.parameters()]:
            nx.add_path(sharing, [layer, *found])
    return [[layer for layer in layers if layer in unit] for unit in nx.connected_components(sharing)]


def _require_dims(distiller: Distiller) -> None:
    for name, parameter in distiller.named_parameters():
        if not parameter.dim():
            raise CompressError(
                f"{name.removeprefix('student.')} is a single number, which cannot be spread: one process"
            )
        parameter.data = parameter.data.contiguous()  # pieces are made along the first dim


@contextlib.contextmanager
def gathered(distiller: Distiller) -> Iterator[None]:
    """The body and tail of a student can be called outside of its ``Distiller``."""
    if not isinstance(distiller, FSDPModule):
        yield
        return
    distiller.unshard()
    yield
    distiller.reshard()


def whole(distiller: Distiller, ranks: Ranks, given: object, to_be_saved: bool) -> Student | None:
    """The student with the values that all processes have trained; in the first process, None in the others."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    values = get_model_state_dict(distiller, options=options)
    if not ranks.first:
        return None
    student = Student.of(given, to_be_saved)  # the one that was spread is in pieces
    own = {name.removeprefix("student."): x for name, x in values.items() if name.startswith("student.")}
    student.module.load_state_dict(own)
    return student
