"""Modules as users write them, with no library around them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ResBlock(nn.Module):
    """Two convolutions around a shortcut, the second with a squeeze and a gate on channels."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, hidden, 3, padding=1, bias=False), nn.BatchNorm2d(hidden)
        self.conv2, self.bn2 = nn.Conv2d(hidden, width, 3, padding=1), nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.gate = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        h = self.depthwise(F.relu(self.bn1(self.conv1(x))))
        h = h * torch.sigmoid(self.gate(h.mean((2, 3))))[:, :, None, None]
        return F.relu(x + self.bn2(self.conv2(h)))


class ResNet(nn.Module):
    """A small residual network: stem, two blocks, pooling, classifier."""

    def __init__(self, width: int = 12, hidden: int = 20, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList([ResBlock(width, hidden) for _ in range(2)])
        self.head = nn.Linear(width, classes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        for block in self.blocks:
            x = block(x)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class TransformerBlock(nn.Module):
    """Fused qkv, PyTorch's own attention without a scale, layer norms, biases, a GELU network."""

    def __init__(self, width: int = 24, heads: int = 4, hidden: int = 40) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        q, k, v = (t.view(batch, length, self.heads, -1).transpose(1, 2) for t in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, -1))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Encoder(nn.Module):
    """Embedding, two blocks, a head on the mean of the tokens."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, width)
        self.blocks = nn.ModuleList([TransformerBlock(width) for _ in range(2)])
        self.head = nn.Linear(width, 7)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


class OpenBlock(nn.Module):
    """Adds what the block before has given, and gives the stream and what the next one is to add."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 40), nn.Linear(40, width)

    def forward(self, added: Tensor, stream: Tensor) -> tuple[Tensor, Tensor]:
        stream = stream + added
        return self.down(F.gelu(self.up(self.norm(stream)))), stream


class OpenBlocks(nn.Module):
    """Three such blocks between two projections."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, width), nn.Linear(width, 7)
        self.blocks = nn.ModuleList([OpenBlock(width) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        stream = self.stem(x)
        added = torch.zeros_like(stream)
        for block in self.blocks:
            added, stream = block(added, stream)
        return self.head(stream + added)


class DenseLayer(nn.Module):
    """Norm first, then a convolution whose output is put beside its input."""

    def __init__(self, width: int, growth: int, hidden: int = 16) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(width), nn.Conv2d(width, hidden, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(hidden), nn.Conv2d(hidden, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(F.relu(self.norm2(h)))], 1)


class DenseNet(nn.Module):
    """Two dense blocks with a transition that halves width and size between them."""

    def __init__(self, width: int = 10, growth: int = 6, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.block1 = nn.Sequential(*(DenseLayer(width + i * growth, growth) for i in range(3)))
        grown = width + 3 * growth
        self.transition = nn.Sequential(nn.BatchNorm2d(grown), nn.ReLU(), nn.Conv2d(grown, 12, 1), nn.AvgPool2d(2))
        self.block2 = nn.Sequential(*(DenseLayer(12 + i * growth, growth) for i in range(2)))
        self.head = nn.Linear(12 + 2 * growth, classes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.block2(self.transition(self.block1(self.stem(image))))
        return self.head(F.adaptive_avg_pool2d(F.relu(x), 1).flatten(1))


class ConvNeXtBlock(nn.Module):
    """A depthwise convolution, channels last for a norm and two linear layers, a scale of every channel, a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        h = self.scale * self.down(F.gelu(self.up(h)))
        return x + h.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """Patches, two stages of blocks with a downsampling convolution between, a head on the mean."""

    def __init__(self, widths: tuple[int, int] = (8, 12), classes: int = 5) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, widths[0], 4, stride=4)
        self.stage1 = nn.Sequential(*(ConvNeXtBlock(widths[0]) for _ in range(2)))
        self.down = nn.Conv2d(widths[0], widths[1], 2, stride=2)
        self.stage2 = nn.Sequential(*(ConvNeXtBlock(widths[1]) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(widths[1]), nn.Linear(widths[1], classes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stage2(self.down(self.stage1(self.patches(image))))
        return self.head(self.norm(x.mean((2, 3))))
