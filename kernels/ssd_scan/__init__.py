from fxcompress.kernels.ssd_scan.op import ssd_scan

__all__ = ["ssd_scan"]
