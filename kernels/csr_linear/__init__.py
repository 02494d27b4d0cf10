from fxcompress.kernels.csr_linear.op import csr_linear

__all__ = ["csr_linear"]
