"""K augmented views per image, made on the device of the images."""

from msssl.views.blur import BlurSolarize as BlurSolarize
from msssl.views.colour import ColorJitterGrayscale as ColorJitterGrayscale
from msssl.views.crop import RandomResizedCropFlip as RandomResizedCropFlip
from msssl.views.multi_crop import MultiCrop as MultiCrop
from msssl.views.multi_view import MultiView as MultiView
from msssl.views.preprocess import Preprocess as Preprocess
