"""The project's studies: which arms ran, with which flags and seeds, and what explains their results."""
