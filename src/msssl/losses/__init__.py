"""Multi-view losses as pure functions of the embeddings z (K, N, D): K views, N images, D dimensions."""

from msssl.losses.barlow_twins import barlow_twins_loss as barlow_twins_loss
from msssl.losses.frossl import frossl_loss as frossl_loss
from msssl.losses.lejepa import lejepa_loss as lejepa_loss
from msssl.losses.logdet import logdet_loss as logdet_loss
from msssl.losses.mmcr import mmcr_loss as mmcr_loss
from msssl.losses.mvdhel import mvdhel_loss as mvdhel_loss
from msssl.losses.simclr import simclr_loss as simclr_loss
from msssl.losses.spectral_contrastive import spectral_contrastive_loss as spectral_contrastive_loss
from msssl.losses.vicreg import vicreg_loss as vicreg_loss
from msssl.losses.visreg import visreg_loss as visreg_loss
