"""The Gram matrix of a layer's inputs, H = mean x xᵀ over tokens, and its damped inverse G = (H + λI)⁻¹.

The loss that pruning a weight W (m, n) to W' causes at the layer's output is tr (W − W') H (W − W')ᵀ. Rows share H.
λ is a fraction of H's mean diagonal, 0.01 as in SparseGPT (arXiv 2301.00774), and larger where H is still singular.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fxcompress.errors import CompressError

_LARGEST = 1e6  # times the mean diagonal: whatever is finite has a factor long before


class Gram:
    """H (n, n), added up over batches in float32 or wider; batches of any size give the same.

    size: n, the width of the inputs. dtype: of the sums, float32 or float64; half precision would lose small batches.
    """

    def __init__(self, size: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> None:
        if dtype not in (torch.float32, torch.float64):
            raise CompressError(f"a Gram matrix in {dtype} loses what it adds up: take float32 or float64")
        self._sum = torch.zeros(size, size, dtype=dtype, device=device)
        self._count = 0.0
        self._damped: dict[float, Damped] = {}  # what reads the same inputs shares one factor

    @classmethod
    def of(cls, inputs: Tensor, dtype: torch.dtype = torch.float32) -> Gram:
        """The Gram matrix of inputs (…, n)."""
        gram = cls(inputs.shape[-1], dtype, inputs.device)
        gram.add(inputs)
        return gram

    def add(self, inputs: Tensor, mask: Tensor | None = None) -> None:
        """Take in inputs (…, n); ``mask`` (…): the weight of every token, 0 for padding.

        Raises CompressError for inputs of another width, and for such that are not finite where the mask is not 0.
        """
        n = self._sum.shape[0]
        if inputs.shape[-1] != n:
            raise CompressError(f"inputs of width {inputs.shape[-1]} in a Gram matrix of size {n}")
        self.forget()
        x = inputs.detach().reshape(-1, n)
        weight = x.new_ones(len(x)) if mask is None else mask.reshape(-1)
        x, weight = x[weight != 0].to(self._sum), weight[weight != 0].to(self._sum)
        if not bool(x.isfinite().all()):
            raise CompressError(f"{int((~x.isfinite()).any(1).sum())} of {len(x)} calibration inputs are not finite")
        self._sum.addmm_(x.T, x * weight[:, None])
        self._count += float(weight.sum())

    def to(self, device: torch.device | str) -> Gram:
        """The same sums on a device; itself where they are there."""
        if self._sum.device == torch.device(device):
            return self
        moved = Gram(self.size, self._sum.dtype, device)
        moved._sum, moved._count = self._sum.to(device), self._count
        return moved

    @property
    def size(self) -> int:
        return self._sum.shape[0]

    @property
    def count(self) -> float:
        """The tokens that were taken in, by their weights."""
        return self._count

    @property
    def matrix(self) -> Tensor:
        """H (n, n), symmetric to the last bit. Raises CompressError when no token was seen, or nothing is finite."""
        if self._count <= 0:
            raise CompressError("no calibration input has reached this layer: its Gram matrix is empty")
        if not bool(self._sum.isfinite().all()):
            raise CompressError("the Gram matrix is not finite: calibration inputs are too large; add up in float64")
        mean = self._sum / self._count
        return (mean + mean.T) / 2

    @property
    def dead(self) -> Tensor:
        """Bool (n,): inputs that were zero for every token. What weights they have does not matter to the loss."""
        return self._sum.diagonal() == 0

    def damped(self, damping: float = 0.01) -> Damped:
        """H + λI with λ = ``damping`` · mean diagonal, and ten times as much as often as it takes to be definite.

        Tried in the dtype of the sums, then in float64. Raises CompressError for damping < 0, or when all inputs were
        zero.
        """
        if damping < 0:
            raise CompressError(f"damping={damping} is negative: it is a fraction of the mean diagonal, 0.01 as a rule")
        if damping not in self._damped:
            self._damped = {damping: self._factored(damping)}
        return self._damped[damping]

    def forget(self) -> None:
        """Let go of what ``damped`` has made."""
        self._damped = {}

    def _factored(self, damping: float) -> Damped:
        H = self.matrix
        scale = float(H.diagonal().double().mean())
        if scale == 0:
            raise CompressError("all calibration inputs of this layer are zero: its Gram matrix says nothing")
        while damping <= _LARGEST:
            for dtype in dict.fromkeys((H.dtype, torch.float64)):
                shifted = H.to(dtype, copy=True)
                shifted.diagonal().add_(damping * scale)
                factor = _factor(shifted)
                if factor is not None:
                    return Damped(shifted, factor, self.dead, damping)
            damping = max(10 * damping, 1e-6)
        raise AssertionError("a finite symmetric matrix with a large diagonal has a Cholesky factor")


@dataclass(frozen=True)
class Damped:
    """H + λI with its inverse.

    matrix: H + λI (n, n). factor: R, upper triangular, H + λI = R Rᵀ. dead: bool (n,), inputs that were always zero.
    damping: λ over the mean diagonal of H, as used.
    """

    matrix: Tensor
    factor: Tensor
    dead: Tensor
    damping: float

    @cached_property
    def upper(self) -> Tensor:
        """U = R⁻¹ (n, n), upper triangular, Uᵀ U = G. From row and column i on it is that of G without those before."""
        eye = torch.eye(len(self.factor), dtype=self.factor.dtype, device=self.factor.device)
        return torch.linalg.solve_triangular(self.factor, eye, upper=True)

    @cached_property
    def inverse(self) -> Tensor:
        """G = (H + λI)⁻¹ (n, n)."""
        return self.upper.T @ self.upper


def relative_loss(weight: Tensor, pruned: Tensor, gram: Gram) -> float:
    """tr (W − W') H (W − W')ᵀ / tr W H Wᵀ of two weights (m, n), without damping; 0 where both are zero."""
    H = gram.matrix.to(weight.device)
    dense = weight.detach().to(torch.promote_types(weight.dtype, H.dtype))
    H, lost = H.to(dense), dense - pruned.detach()
    of = _quadratic(dense, H)
    return _quadratic(lost, H) / of if of > 0 else 0.0


def _quadratic(rows: Tensor, H: Tensor) -> float:
    """tr X H Xᵀ: products in the dtype of H, which cost the most, their sum in float64."""
    return float(torch.linalg.vecdot((rows @ H).double(), rows.double()).sum())


def _factor(matrix: Tensor) -> Tensor | None:
    """R, upper triangular with R Rᵀ = matrix: the Cholesky factor from the last row up. None where rounding decides."""
    lower, failed = torch.linalg.cholesky_ex(matrix.flip(0, 1))
    pivots = lower.diagonal().square()
    noise = len(matrix) * torch.finfo(matrix.dtype).eps * float(matrix.diagonal().max())
    if bool(failed) or not float(pivots.min()) > noise:  # also when NaN
        return None
    return lower.flip(0, 1).contiguous()
