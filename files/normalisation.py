"""CLIP's mean and deviation of colours: open_clip's constants, without the two seconds that importing it takes."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # red, green, blue in [0, 1]
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
