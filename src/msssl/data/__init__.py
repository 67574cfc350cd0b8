"""Data modules: one `MultiViewDataModule` for each data set, with the splits, loaders and views that they share."""

from msssl.data.datamodule import FromDatasets as FromDatasets
from msssl.data.datamodule import MultiViewDataModule as MultiViewDataModule
from msssl.data.sets.beton import Beton as Beton
from msssl.data.sets.downloaded import CIFAR10 as CIFAR10
from msssl.data.sets.downloaded import CIFAR100 as CIFAR100
from msssl.data.sets.downloaded import STL10 as STL10
from msssl.data.sets.image_folder import ImageFolder as ImageFolder
from msssl.data.sets.shapes import Shapes as Shapes
