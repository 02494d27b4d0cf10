"""Ops of fxcompress's own, one folder an op: importing this package registers them under ``torch.ops.fxcompress``.

A model's scan, convolution, attention or experts are each one node of the graph, whatever shapes they run on, with
a rule that ties its axes and a cost. In a folder, ``reference.py`` says in plain PyTorch what the op computes and
``op.py`` registers it; ``triton.py``, where there is one, is the kernel for CUDA tensors. Files of other names call a
library's kernels.
"""

if __name__ == "kernels":
    # Python was started in the repository, and transformers looks for another project's package of this name. A module
    # without a file and a version it takes for absent.
    __file__ = None  # type: ignore[assignment]
else:
    from fxcompress.kernels.attention import attention
    from fxcompress.kernels.causal_conv1d import causal_conv1d
    from fxcompress.kernels.csr_linear import csr_linear
    from fxcompress.kernels.experts import experts
    from fxcompress.kernels.gated_delta import gated_delta
    from fxcompress.kernels.selective_scan import selective_scan
    from fxcompress.kernels.sparse24_linear import sparse24_linear
    from fxcompress.kernels.ssd_scan import ssd_scan

    __all__ = [
        "attention",
        "causal_conv1d",
        "csr_linear",
        "experts",
        "gated_delta",
        "selective_scan",
        "sparse24_linear",
        "ssd_scan",
    ]
