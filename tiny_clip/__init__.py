"""How ViT-Tiny-8-demo, the CLIP that comes with the repository, was pretrained and what it knows."""
