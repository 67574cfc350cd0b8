"""Multi-view losses as pure functions of the embeddings z (K, N, D): K views, N images, D dimensions."""

from msssl.losses.barlow_twins import barlow_twins_loss as barlow_twins_loss
from msssl.losses.mmcr import mmcr_loss as mmcr_loss
from msssl.losses.simclr import simclr_loss as simclr_loss
from msssl.losses.spectral_contrastive import spectral_contrastive_loss as spectral_contrastive_loss
from msssl.losses.vicreg import vicreg_loss as vicreg_loss
