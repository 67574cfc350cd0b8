"""`msssl export`: writes an encoder in the formats of other libraries."""
