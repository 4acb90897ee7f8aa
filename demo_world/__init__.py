"""The demo data sets: rendered products (DemoA, DemoB, DemoC), photographs with composited defects (DemoPhoto…)."""
