"""`msssl neighbours`: the nearest neighbours of some images, and the page that shows them."""

from msssl.evaluation.neighbours.neighbours import neighbours as neighbours
