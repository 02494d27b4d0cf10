"""Compile Triton kernels for an H100 without having one.

``install()`` makes a driver active under which ``kernel[grid](...)`` specialises and compiles as the JIT does on that
GPU, given CPU tensors, checks the limits of shared memory and threads, and launches nothing. What each compiled kernel
uses is read from its binary. Not for a process with TRITON_INTERPRET=1, where kernels are never compiled.
"""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

CAPABILITY = 90
MAX_SHARED = 232448  # bytes a block may ask for
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


@dataclass(frozen=True)
class Resources:
    """``stack`` bytes a thread beyond its registers: where it is not 0, registers spill (or arrays are local)."""

    kernel: str
    registers: int
    stack: int
    shared: int


class CompileOnly(DriverBase):
    """The part of a driver that Triton's JIT asks before a launch; it is its own ``utils`` too."""

    def __init__(self) -> None:
        self.utils = self
        self.compiled: list[Resources] = []

    @classmethod
    def is_active(cls) -> bool:
        return True

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", CAPABILITY, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": MAX_SHARED}

    def load_binary(self, name: str, cubin: bytes, shared: int, device: int) -> tuple[Any, ...]:
        used = resources(name, cubin, shared)
        self.compiled.append(used)
        return object(), object(), used.registers, used.stack, 1024  # module, function, ..., threads a block may have

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        return lambda *_: None

    def map_python_to_cpp_type(self, ty: str) -> str:
        raise NotImplementedError

    def get_benchmarker(self) -> Any:
        raise NotImplementedError


def install() -> CompileOnly:
    driver = CompileOnly()
    triton.runtime.driver.set_active(driver)
    return driver


def resources(name: str, cubin: bytes, shared: int) -> Resources:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        listing = subprocess.check_output([CUOBJDUMP, "-res-usage", file.name], text=True)
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", listing).groups())
    return Resources(name, registers, stack, shared)
