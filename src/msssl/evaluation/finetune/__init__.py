"""`msssl finetune`: trains the whole encoder on labels, from several starting points."""
