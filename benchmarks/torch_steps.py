"""PyTorch's training step and forward pass, in each of its modes, for `train_step.py`."""

import contextlib
from typing import Any

import numpy as np
import torch

from benchmarks.cases import (
    LEARNING_RATE,
    MOMENTUM,
    WEIGHT_DECAY,
    Arrays,
    Case,
    Losses,
    draw_batches,
    model_fields,
    pixel_statistics,
)
from benchmarks.torch_msdnet import exit_losses, new_network, to_torch_names


class TorchSteps:
    """The steps of one case.

    Args:
      case: what is computed.
      weights: initial arrays by the names of the JAX network.
      channels_last: memory layout of feature maps and kernels.
      compilation: a mode of torch.compile, or None for eager.
    """

    def __init__(
        self, case: Case, weights: Arrays, *, channels_last: bool, compilation: str | None
    ):
        torch.set_num_threads(case.threads)
        reduced = case.precision == "tensorfloat32"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = reduced
        torch.backends.cudnn.benchmark = True
        self.case, self.device = case, torch.device(case.device)
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        network = new_network(
            model_fields(case.network), case.dataset_info.num_classes, to_torch_names(weights)
        )
        self.network = network.to(self.device, memory_format=self.layout)
        self.batches = self._batches()
        self.optimizer = torch.optim.SGD(
            self.network.parameters(),
            lr=LEARNING_RATE,
            momentum=MOMENTUM,
            weight_decay=WEIGHT_DECAY,
            nesterov=True,
            fused=True,  # one pass over all parameters
        )
        pixels = pixel_statistics(case)
        mean, std = (torch.tensor(pixels[name], device=self.device) for name in ("mean", "std"))
        self.scale = (1 / (255 * std)).reshape(1, -1, 1, 1)
        self.shift = (-mean / std).reshape(1, -1, 1, 1)
        self.losses_of, self.logits_of = self._losses, self._logits
        if compilation:
            self.losses_of, self.logits_of = (
                torch.compile(function, mode=compilation)
                for function in (self._losses, self._logits)
            )

    def _batches(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Images and labels on the device, in the memory layout of the network."""
        images, labels = draw_batches(self.case)
        return [
            (
                torch.from_numpy(np.ascontiguousarray(i.transpose(0, 3, 1, 2)))
                .to(self.device)
                .contiguous(memory_format=self.layout),
                torch.from_numpy(t).long().to(self.device),
            )
            for i, t in zip(images, labels, strict=True)
        ]

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self.case.precision != "bfloat16":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def _logits(self, images: torch.Tensor, equilibrium: str = "off") -> torch.Tensor:
        with self._precision():
            return self.network(images.float() * self.scale + self.shift, equilibrium)

    def _losses(
        self, images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses and accuracies [E], as the JAX step computes them."""
        logits = self._logits(images, "all")
        losses = exit_losses(logits, labels)
        return losses, (logits.detach().argmax(-1) == labels).float().mean(-1)

    def phase_one(self, steps: int) -> Losses:
        """Takes training steps of phase I; returns the last losses per exit."""
        self.network.train()
        for i in range(steps):
            torch.compiler.cudagraph_mark_step_begin()
            losses, _ = self.losses_of(*self.batches[i % len(self.batches)])
            losses.sum().backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        self._wait()
        return losses.tolist()

    def forward(self, steps: int) -> Losses:
        """Computes logits of all exits; returns the first logit per exit of the last batch."""
        self.network.eval()
        with torch.no_grad():
            for i in range(steps):
                torch.compiler.cudagraph_mark_step_begin()
                logits = self.logits_of(self.batches[i % len(self.batches)][0])
        self._wait()
        return logits[:, 0, 0].tolist()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
