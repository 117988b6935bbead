"""torch's `Timer`, without what its import says.

It pulls in torch's own tool for building extensions, which warns of a CUDA toolkit where there is no GPU: nothing here
builds with it.
"""

from __future__ import annotations

import logging

_logger = logging.getLogger("torch.utils.cpp_extension")
_level = _logger.level
_logger.setLevel(logging.ERROR)
try:
    from torch.utils.benchmark import Timer
finally:
    _logger.setLevel(_level)

__all__ = ["Timer"]
