"""Multi-view losses as pure functions of the embeddings z (K, N, D): K views, N images, D dimensions."""

from msssl.losses.barlow_twins import barlow_twins_loss as barlow_twins_loss
from msssl.losses.vicreg import vicreg_loss as vicreg_loss
