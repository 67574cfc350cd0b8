"""Methods: a `MultiViewModule` each, which adds a loss to the backbone, projector and optimizer that they share."""

from msssl.modules.barlow_twins import BarlowTwins as BarlowTwins
from msssl.modules.mmcr import MMCR as MMCR
from msssl.modules.module import MultiViewModule as MultiViewModule
from msssl.modules.simclr import SimCLR as SimCLR
from msssl.modules.spectral_contrastive import SpectralContrastive as SpectralContrastive
from msssl.modules.vicreg import VICReg as VICReg
from msssl.modules.warmup_cosine import WarmupCosine as WarmupCosine
