"""Published checkpoints: weight files, key maps, folders and single files, LoRA, textual inversion, where they come from."""
