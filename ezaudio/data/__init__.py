"""Training sounds of the packaged model: synthesis, CC0 recordings, captions, tokenizer."""
