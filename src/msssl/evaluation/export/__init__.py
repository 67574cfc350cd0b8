"""`msssl export`: an encoder in the formats of other libraries."""
