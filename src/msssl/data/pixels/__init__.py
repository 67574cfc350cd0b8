"""How an item of a data set becomes 8-bit RGB pixels, and where the decoded images are kept."""
