"""The networks that dnt is compared with, in PyTorch; the same layers, written as PyTorch's users would."""

import collections

import torch
from torch import nn
from torch.nn import functional as F


class Basic(nn.Module):
  """The block of CIFAR ResNets: two 3x3 convolutions, and a shortcut of zero-padded channels (A)."""

  def __init__(self, inputs: int, features: int, stride: int):
    super().__init__()
    self.stride, self.extra = stride, (features - inputs) // 2
    self.conv1 = nn.Conv2d(inputs, features, 3, stride, 1, bias=False)
    self.bn1 = nn.BatchNorm2d(features)
    self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
    self.bn2 = nn.BatchNorm2d(features)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
    if self.stride > 1:
      x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra, self.extra))
    return F.relu(x + y)


class Bottleneck(nn.Module):
  """The block of ResNet-50, and a shortcut of 1x1 convolutions where the shape changes (B).

  The stride is on the 3x3 convolution as in torchvision, or on the first 1x1 as in He et al. 2015.
  """

  def __init__(self, inputs: int, features: int, stride: int, stride_on: str):
    super().__init__()
    outputs, (first, second) = 4 * features, {'1x1': (stride, 1), '3x3': (1, stride)}[stride_on]
    self.conv1, self.bn1 = nn.Conv2d(inputs, features, 1, first, bias=False), nn.BatchNorm2d(features)
    self.conv2, self.bn2 = nn.Conv2d(features, features, 3, second, 1, bias=False), nn.BatchNorm2d(features)
    self.conv3, self.bn3 = nn.Conv2d(features, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
    self.downsample = nn.Identity()
    if stride > 1 or inputs != outputs:
      self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    y = F.relu(self.bn1(self.conv1(x)))
    y = F.relu(self.bn2(self.conv2(y)))
    return F.relu(self.downsample(x) + self.bn3(self.conv3(y)))


def cifar_resnet(depth: int, classes: int = 10) -> nn.Module:
  """ResNet-20, 32, ..., of He et al. 2015, section 4.2."""
  layers, inputs = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()], 16
  for stage, features in enumerate((16, 32, 64)):
    for index in range((depth - 2) // 6):
      layers.append(Basic(inputs, features, 2 if stage and not index else 1))
      inputs = features
  return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def resnet50(classes: int = 1000, stride_on: str = '3x3') -> nn.Module:
  """ResNet-50 of ImageNet, as in torchvision, whose names of layers it has."""
  layers = {'conv1': nn.Conv2d(3, 64, 7, 2, 3, bias=False), 'bn1': nn.BatchNorm2d(64), 'relu': nn.ReLU()}
  layers['maxpool'], inputs = nn.MaxPool2d(3, 2, 1), 64
  for stage, (features, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 1):
    layer = []
    for index in range(blocks):
      layer.append(Bottleneck(inputs, features, 2 if stage > 1 and not index else 1, stride_on))
      inputs = 4 * features
    layers[f'layer{stage}'] = nn.Sequential(*layer)
  layers |= {'avgpool': nn.AdaptiveAvgPool2d(1), 'flatten': nn.Flatten(), 'fc': nn.Linear(inputs, classes)}
  return nn.Sequential(collections.OrderedDict(layers))
