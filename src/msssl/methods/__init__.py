"""Methods: a `MultiViewModule` each, which adds a loss to the backbone, projector and optimizer that they share."""

from msssl.methods.barlow_twins import BarlowTwins as BarlowTwins
from msssl.methods.mmcr import MMCR as MMCR
from msssl.methods.module import MultiViewModule as MultiViewModule
from msssl.methods.optimizer import WarmupCosine as WarmupCosine
from msssl.methods.simclr import SimCLR as SimCLR
from msssl.methods.spectral_contrastive import SpectralContrastive as SpectralContrastive
from msssl.methods.vicreg import VICReg as VICReg
