"""Trying a model: one picture, a folder of pictures, or a chat in the browser."""
