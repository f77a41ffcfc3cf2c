"""CLIP: loading, dense features, windows, text, head and upsampling."""
