"""The two operators at the heart of the model: AdaLN-SOLA and QK-norm attention. `reference.py` specifies them in plain PyTorch."""
