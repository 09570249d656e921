"""Attention, feed-forward networks, and the encoder and decoder that are made of them."""
