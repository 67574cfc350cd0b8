"""Methods: a `MultiViewModule` each, which adds a loss to the backbone, projector and optimizer that they share."""

from msssl.methods.barlow_twins import BarlowTwins as BarlowTwins
from msssl.methods.frossl import FroSSL as FroSSL
from msssl.methods.lejepa import LeJEPA as LeJEPA
from msssl.methods.logdet import LogDet as LogDet
from msssl.methods.mmcr import MMCR as MMCR
from msssl.methods.module import MultiViewModule as MultiViewModule
from msssl.methods.mvdhel import MVDHEL as MVDHEL
from msssl.methods.optimizer import WarmupCosine as WarmupCosine
from msssl.methods.predictive import BYOL as BYOL
from msssl.methods.predictive import SimSiam as SimSiam
from msssl.methods.random_directions import RandomDirections as RandomDirections
from msssl.methods.simclr import SimCLR as SimCLR
from msssl.methods.spectral_contrastive import SpectralContrastive as SpectralContrastive
from msssl.methods.vicreg import VICReg as VICReg
from msssl.methods.visreg import VISReg as VISReg
