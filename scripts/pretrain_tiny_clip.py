"""The name from before of `python -m tiny_clip.pretrain`."""

from tiny_clip.pretrain import main

if __name__ == "__main__":
    main()
