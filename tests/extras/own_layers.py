"""Modules as a user's repository has them: logged with the model, imported where it is loaded. Run in the environments of the extras."""

import torch


class Scores(torch.nn.Module):
    """Four numbers to the shares of three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Linear(4, 8), torch.nn.Linear(8, 3)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.last(torch.relu(self.first(features))), dim=1)


class Sequences(torch.nn.Module):
    """Two inputs, one with rows of any length; two outputs by name."""

    def forward(self, values: torch.Tensor, weights: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"total": values.sum(dim=1, keepdim=True), "weighted": values.mean(dim=1, keepdim=True) * weights}


@torch.library.custom_op("own::cube", mutates_args=())
def cube(values: torch.Tensor) -> torch.Tensor:
    return values**3


@cube.register_fake
def _(values: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(values)


class Cubes(torch.nn.Module):
    """Uses an operator that nobody can translate."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return cube(features)
