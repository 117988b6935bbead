from __future__ import annotations

import pytest
import torch

NEEDS_GPU = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    # By default cuDNN may round a float32 convolution's inputs to ten bits; what it gives is held to float64 here.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return request.param
