"""Run a script of the project with the architecture of a tests' CLIP: with_world.py FOLDER SCRIPT ARGUMENTS..."""

import runpy
import sys
from pathlib import Path

import open_clip

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

if __name__ == "__main__":
    open_clip.add_model_config(sys.argv[1])
    script = ROOT / sys.argv[2]
    sys.argv = [str(script), *sys.argv[3:]]
    runpy.run_path(str(script), run_name="__main__")
