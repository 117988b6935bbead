"""`train.ema_decay`: an exponential moving average (EMA) of the trained model's weights.

    average <- decay * average + (1 - decay) * weights        after each step that changed the weights

Averaged are the parameters that are trained and, in the same way, the running statistics of live batch norm: statistics
of other weights than the averaged ones would not fit their activations. What else a detector holds is its own at that
moment: frozen weights and constants, counters (num_batches_tracked), of which a mean means nothing, and buffers of a
user's own, whose infinities (in a mask, say) a mean would turn into NaN.

The decay grows to its value as (1 + n) / (10 + n) over the n steps that are averaged (TensorFlow's rule). With a fixed
0.9998 the weights at the start would still be a third of the average after 5000 steps, so that short runs, and the
first evaluations of long ones, would judge a model that has hardly been trained.

torch's own update rule does the work, in one pass over all weights and without a wait for the device. The rest of
torch.optim.swa_utils.AveragedModel does not fit: it copies its counter to the GPU each step, which waits; it averages
either no buffer or all, integers and infinities too; and its deep copy refuses modules that are not materialised yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from gid_cuda.engine.distributed import running_statistics


def decay_after(updates: int, decay: float) -> float:
    """The decay of the update that follows `updates` of them."""
    return min(decay, (1 + updates) / (10 + updates))


class WeightAverage:
    """The moving average of a module's weights, beside the module, which stays what the optimizer works on.

    updates: how many steps went in. The first copies the weights: before it there is no average, and the module's own
    weights stand for it.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self._module = module
        self._live: list[Tensor] = []  # the module's own, in one order with
        self._mean: list[Tensor] = []
        self._statistics = 0  # how many of them, at the end, are running statistics

    def update(self) -> None:
        """After the optimizer's step. Nothing waits for the device.

        So a step that fp16's scaler leaves out, which is known on the device alone, counts: with unchanged weights."""
        if self.updates == 0:
            self._begin()
        else:
            get_ema_multi_avg_fn(decay_after(self.updates, self.decay))(self._mean, self._live, None)
        self.updates += 1

    def restore(self, updates: int) -> None:
        """Goes on after so many updates with the weights that the module has now as their average."""
        self.updates = updates
        if updates > 0:
            self._begin()

    def running_statistics(self) -> list[Tensor]:
        """The averages of live batch norm's, which each process has of its own images."""
        return self._mean[len(self._mean) - self._statistics :]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the module has the averaged weights; after it, however it ends, its own again, bit for bit."""
        own = [tensor.detach().clone() for tensor in self._live]
        try:
            _copy(self._mean, self._live)
            yield
        finally:
            _copy(own, self._live)

    def state_dict(self) -> dict[str, Any]:
        """The module's, with the averaged weights; copies."""
        with self.in_place():
            state = self._module.state_dict()
            return {key: value.clone() if isinstance(value, Tensor) else value for key, value in state.items()}

    def _begin(self) -> None:
        # In the first update rather than in __init__: only then are lazy modules and all weights sure to be there.
        statistics = running_statistics(self._module)
        self._live = [p for p in self._module.parameters() if p.requires_grad] + statistics
        self._mean = [tensor.detach().clone() for tensor in self._live]
        self._statistics = len(statistics)


@torch.no_grad()
def _copy(sources: list[Tensor], targets: list[Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)
