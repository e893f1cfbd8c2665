"""The operators at the heart of the model, AdaLN-SOLA and QK-norm attention; `reference.py` is their specification."""
