"""The frozen CLIP backbone and the adapters around it.

Axes, in every comment and docstring of this package: B images, P prompts, T text tokens, L patches,
N = 1 + L vision tokens (CLS first), C vision width, W text width, E embedding width.
A *level* is the number of vision blocks a feature has passed; an *anchor pair* is one class's [E, 2]
text features (normal, abnormal).
"""
