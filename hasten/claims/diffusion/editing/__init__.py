"""Claims of image editing."""
