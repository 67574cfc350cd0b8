"""Where images come from: one data module for each kind of data set, and the lists of files that they read."""
