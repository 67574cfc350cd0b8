"""Self-supervised pretraining of image encoders with many views, for few GPUs and little data."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Names load on first use: `import msssl` imports neither torch nor lightning.
_HOME = {
    "MultiViewModule": "methods",
    "BarlowTwins": "methods",
    "VICReg": "methods",
    "SimCLR": "methods",
    "SpectralContrastive": "methods",
    "MMCR": "methods",
    "LeJEPA": "methods",
    "FroSSL": "methods",
    "LogDet": "methods",
    "VISReg": "methods",
    "MVDHEL": "methods",
    "BYOL": "methods",
    "SimSiam": "methods",
    "WarmupCosine": "methods",
    "MultiViewDataModule": "data",
    "CIFAR10": "data",
    "CIFAR100": "data",
    "STL10": "data",
    "ImageFolder": "data",
    "Beton": "data",
    "Shapes": "data",
    "MultiView": "views",
    "OnlineKNN": "callbacks",
    "OnlineProbe": "callbacks",
    "RankMonitor": "callbacks",
    "ResNet": "backbones",
    "export": "evaluation",
    "finetune": "evaluation",
    "neighbours": "evaluation",
    "probe": "evaluation",
}
_MODULES = ("callbacks", "losses", "metrics", "distributed")

__all__ = [*_HOME, *_MODULES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"msssl.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(f"msssl.{_HOME[name]}"), name)
    raise AttributeError(f"module 'msssl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from msssl import callbacks as callbacks
    from msssl import distributed as distributed
    from msssl import losses as losses
    from msssl import metrics as metrics
    from msssl.backbones import ResNet as ResNet
    from msssl.callbacks import OnlineKNN as OnlineKNN
    from msssl.callbacks import OnlineProbe as OnlineProbe
    from msssl.callbacks import RankMonitor as RankMonitor
    from msssl.data import CIFAR10 as CIFAR10
    from msssl.data import CIFAR100 as CIFAR100
    from msssl.data import STL10 as STL10
    from msssl.data import Beton as Beton
    from msssl.data import ImageFolder as ImageFolder
    from msssl.data import MultiViewDataModule as MultiViewDataModule
    from msssl.data import Shapes as Shapes
    from msssl.evaluation import export as export
    from msssl.evaluation import finetune as finetune
    from msssl.evaluation import neighbours as neighbours
    from msssl.evaluation import probe as probe
    from msssl.methods import BYOL as BYOL
    from msssl.methods import MMCR as MMCR
    from msssl.methods import MVDHEL as MVDHEL
    from msssl.methods import BarlowTwins as BarlowTwins
    from msssl.methods import FroSSL as FroSSL
    from msssl.methods import LeJEPA as LeJEPA
    from msssl.methods import LogDet as LogDet
    from msssl.methods import MultiViewModule as MultiViewModule
    from msssl.methods import SimCLR as SimCLR
    from msssl.methods import SimSiam as SimSiam
    from msssl.methods import SpectralContrastive as SpectralContrastive
    from msssl.methods import VICReg as VICReg
    from msssl.methods import VISReg as VISReg
    from msssl.methods import WarmupCosine as WarmupCosine
    from msssl.views import MultiView as MultiView
