"""OWL: how much to remove from each layer, less where more weights are outliers (arXiv 2310.05175, section 4).

outliers_l = part of the layer's Wanda scores above M times their mean
sparsity_l = s − λ … s + λ, falling linearly with outliers_l, of mean s over all weights
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fxcompress.errors import CompressError

WIDTH = 0.08  # λ, as its authors set it


def outlier_ratio(scores: Sequence[Tensor], threshold: float = 5.0) -> float:
    """The part of a layer's scores above ``threshold`` times their mean (M of the paper, which takes 5 or 7).

    scores: of every weight matrix of the layer, |w| √H_jj each.
    """
    count = sum(one.numel() for one in scores)
    mean = sum(float(one.double().sum()) for one in scores) / count
    return sum(int((one > threshold * mean).sum()) for one in scores) / count


def require_room(sparsity: float, width: float = WIDTH) -> None:
    """Raise CompressError where sparsity ± width is not inside (0, 1)."""
    low, high = sparsity - width, sparsity + width
    if width < 0 or not 0 < low <= high < 1:
        raise CompressError(f"sparsity={sparsity} ± width={width} reaches from {low:g} to {high:g}, outside (0, 1)")


def allocate(outliers: Sequence[float], sizes: Sequence[int], sparsity: float, width: float = WIDTH) -> list[float]:
    """The sparsity of every layer, within ``width`` (λ of the paper) of ``sparsity``, which is their mean over weights.

    outliers: of every layer. sizes: how many weights each has. Raises CompressError where sparsity ± width is not
    inside (0, 1), or the lists differ in length.
    """
    if len(outliers) != len(sizes) or not sizes:
        raise CompressError(
            f"outliers of {len(outliers)} layers and sizes of {len(sizes)}: one of each a layer is needed"
        )
    require_room(sparsity, width)
    low, high = sparsity - width, sparsity + width
    least, spread = min(outliers), max(outliers) - min(outliers)
    if not spread or low == high:
        return [sparsity] * len(sizes)
    slopes = [-2 * width * (one - least) / spread for one in outliers]
    return _shifted(slopes, sizes, sparsity, low, high)


def _shifted(values: Sequence[float], sizes: Sequence[int], mean: float, low: float, high: float) -> list[float]:
    """The values, all shifted by what gives this mean when each is then clipped to low … high."""

    def clipped(shift: float) -> list[float]:
        return [min(max(value + shift, low), high) for value in values]

    def mean_of(shift: float) -> float:
        return sum(size * value for size, value in zip(sizes, clipped(shift), strict=True)) / sum(sizes)

    # Between two shifts at which a value reaches a bound the mean is linear.
    bends = sorted({bound - value for bound in (low, high) for value in values})
    after = next((i for i, bend in enumerate(bends) if mean_of(bend) >= mean), len(bends) - 1)
    left, right = bends[max(after - 1, 0)], bends[after]
    rise, above = mean_of(right) - mean_of(left), mean_of(right) - mean
    return clipped(right - (right - left) * above / rise if rise else right)
