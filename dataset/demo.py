"""The name from before of `python -m demo_world.render_sets`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("demo_world.render_sets", run_name="__main__")
