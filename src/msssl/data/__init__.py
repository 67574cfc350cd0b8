"""Image sets: one class each, on the batches, order and splits that they share."""

from msssl.data.beton import Beton as Beton
from msssl.data.cifar import CIFAR10 as CIFAR10
from msssl.data.cifar import CIFAR100 as CIFAR100
from msssl.data.datamodule import MultiViewDataModule as MultiViewDataModule
from msssl.data.image_folder import ImageFolder as ImageFolder
from msssl.data.shapes import Shapes as Shapes
from msssl.data.stl10 import STL10 as STL10
