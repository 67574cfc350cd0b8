"""What keeps a run complete from its start to its end, whatever stops it in between: see README.md in this folder."""
