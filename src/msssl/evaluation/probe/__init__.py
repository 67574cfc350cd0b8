"""`msssl probe`: how good the features of an encoder are, by heads that are trained on them."""
