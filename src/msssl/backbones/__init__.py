"""Image encoders: `ResNet`, `ConvNet`, `ViT`, models of timm, or any `nn.Module` that returns features (N, F)."""

from msssl.backbones.build import build_backbone as build_backbone
from msssl.backbones.build import channels_of as channels_of
from msssl.backbones.build import check_channels as check_channels
from msssl.backbones.build import check_features as check_features
from msssl.backbones.build import evaluating as evaluating
from msssl.backbones.build import find_feature_dim as find_feature_dim
from msssl.backbones.convnet import ConvNet as ConvNet
from msssl.backbones.resnet import ResNet as ResNet
from msssl.backbones.vit import ViT as ViT
