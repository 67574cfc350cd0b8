"""K augmented views per image, made on the device of the images."""

from msssl.views.multi_view import MultiView as MultiView
