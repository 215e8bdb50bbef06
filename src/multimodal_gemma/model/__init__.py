"""The model: vision encoder, projector and language model in the stock Llava layout, and its training forward pass."""
