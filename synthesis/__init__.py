"""Semantic fill: a FLUX.1-Fill transformer learns to fill the right half of a diptych where a semantic map says.

A triptych [visible | target | semantic] is one training example; the diptych [visible | target] is what the transformer
sees, the semantic panel reaches it through a small cross-attention on the noisy tokens. Optional: needs
requirements-synthesis.txt, and the detector imports nothing from here.

Axes: B batch, S side of a panel in pixels, H and W height and width, C channels, N tokens of a diptych, M tokens of a
semantic map, L tokens of a prompt. A token stands for 16 x 16 pixels.
"""
