from fxcompress.kernels.attention.op import attention

__all__ = ["attention"]
