"""The model's operators on Triton, one file each; `reference.py` says in plain PyTorch what they compute.

Importing this package loads nothing. `MaskDiT.fuse()` and `ControlNet.fuse()` switch a model to them.
"""
