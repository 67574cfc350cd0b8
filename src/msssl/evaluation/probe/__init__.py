"""`msssl probe`: how good the features of an encoder are, measured by classifiers that are fitted on them."""
