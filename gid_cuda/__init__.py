"""General Instance Distillation (Dai et al., CVPR 2021) for PyTorch, with CUDA and CPU kernels."""

from __future__ import annotations

__version__ = "0.1.0"
