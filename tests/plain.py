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
