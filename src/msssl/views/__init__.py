"""K augmented views per image, made on the device of the images."""

from msssl.views.blur import BlurSolarize as BlurSolarize
from msssl.views.channel_drop import ChannelDrop as ChannelDrop
from msssl.views.colour import ColorJitterGrayscale as ColorJitterGrayscale
from msssl.views.crop import RandomResizedCropFlip as RandomResizedCropFlip
from msssl.views.intensity import IntensityJitter as IntensityJitter
from msssl.views.multi_crop import MultiCrop as MultiCrop
from msssl.views.multi_view import MultiView as MultiView
from msssl.views.preprocess import Preprocess as Preprocess
from msssl.views.symmetry import RandomD4 as RandomD4
