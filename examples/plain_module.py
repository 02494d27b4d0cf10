"""Compress modules that no library made: a residual CNN and a Transformer block, by the axes found in their graphs.

Example inputs say which tensors a module takes. Of images only the batch may differ later, of sequences the length too.
An axis that cannot be cut is pinned, with the reason.
"""

import torch
from rich import print
from torch import Tensor, nn
from torch.nn import functional as F

import fxcompress
from fxcompress.axes import AxisMap
from fxcompress.passes import PruneAxes, PruneFFN

CHANNELS = 0.5  # of the channels inside every residual block
NEURONS = 0.25  # of the neurons of the Transformer block
WIDTH, HIDDEN, HEADS, CLASSES = 32, 48, 4, 10


class ResidualBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(WIDTH, HIDDEN, 3, padding=1, bias=False), nn.BatchNorm2d(HIDDEN)
        self.conv2, self.norm2 = nn.Conv2d(HIDDEN, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(ResidualBlock(), ResidualBlock())
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(image)).mean((2, 3)))


class TransformerBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.ffn = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.ffn(self.norm2(x))


torch.manual_seed(0)
images, activations = torch.randn(2, 3, 16, 16), torch.randn(2, 12, WIDTH)

resnet = fxcompress.capture(ResNet(), (images,))
for group in resnet.get(AxisMap).groups:
    print(f"{group.key} of {group.size}: {group.pinned[0] if group.pinned else 'free'}")

cnn = fxcompress.apply(resnet, [PruneAxes(groups="blocks.*.conv1.weight[0]", ratio=CHANNELS)])
block = fxcompress.apply(TransformerBlock(), [PruneFFN(ratio=NEURONS)], example_inputs=(activations,))

print(cnn.report, block.report)
print("outputs:", cnn(images).shape, block(activations).shape)
