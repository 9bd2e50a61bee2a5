"""Networks under their published names: a checkpoint's keys are our module names, so loading needs no map.

Shape legend: B batch, C channels, H W height and width, L image tokens (H*W), S text tokens, D width, N heads.
"""
