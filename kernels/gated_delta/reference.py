"""The gated delta rule, chunk by chunk."""

import torch
from torch import Tensor

from fxcompress.kernels._register import widen
from fxcompress.kernels.ssd_scan.reference import in_chunks, segsum


def gated_delta(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, chunk_size: int) -> Tensor:
    """A linear recurrence that corrects what its state says of a key, from a zero state; value head (g r) reads key
    head g.

        S'_t = exp(decay_t) S_{t-1}
        S_t  = S'_t + beta_t k_t (v_t - S'_t^T k_t)^T
        y_t  = S_t^T q_t

    q and k (b, l, g, n), v (b, l, g*r, p), decay (b, l, g*r) at most 0, beta (b, l, g*r) -> y (b, l, g*r, p), in the
    dtype of v. Any length; ``chunk_size`` changes the cost and the rounding only.

    Yang et al., Gated delta networks, arXiv 2412.06464, section 3.3: within a chunk the corrections depend on one
    another through a unit lower triangular system.
    """
    dtype, (b, length, heads, p), g = v.dtype, v.shape, k.shape[2]
    q, k, v, decay, beta = widen(q, k, v, decay, beta)
    # b batch, c chunk, l and s positions in a chunk, g key head, r value head on it, p value channel, n key channel
    qc, kc, vc, a, beta_c = (in_chunks(t, min(chunk_size, length)) for t in (q, k, v, decay, beta))
    vc = vc.unflatten(3, (g, -1)).permute(0, 1, 3, 4, 2, 5)  # (b c g r l p)
    qc, kc = (t.transpose(2, 3)[:, :, :, None] for t in (qc, kc))  # (b c g 1 l n)
    a, beta_c = (t.movedim(3, 2).unflatten(2, (g, -1)) for t in (a, beta_c))  # (b c g r l)
    beta_c = beta_c[..., None]
    since, between = torch.exp(a.cumsum(-1))[..., None], torch.exp(segsum(a))

    # 1. the corrections of a chunk, given the state that it starts from: u - w S
    system = beta_c * (kc @ kc.mT) * between  # its diagonal is taken for ones
    u, w = (
        torch.linalg.solve_triangular(system, t, upper=False, unitriangular=True)
        for t in (beta_c * vc, beta_c * since * kc)
    )

    # 2. from chunk to chunk: read the state, add what was corrected
    scores = (qc @ kc.mT) * between
    to_end = torch.exp(segsum(a)[..., -1, :])[..., None]
    state = v.new_zeros(b, g, heads // g, k.shape[3], p)
    out = []
    for i in range(vc.shape[1]):
        new = u[:, i] - w[:, i] @ state
        out.append((since * qc)[:, i] @ state + scores[:, i] @ new)
        state = since[:, i, ..., -1:, :] * state + (to_end * kc)[:, i].mT @ new
    y = torch.stack(out, 1).permute(0, 1, 4, 2, 3, 5)  # (b c l g r p)
    return y.reshape(b, -1, heads, p)[:, :length].to(dtype).contiguous()
