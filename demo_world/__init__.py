"""The demo data sets: rendered products (DemoA, DemoB) and photographs with composited defects (DemoPhoto, …Med)."""
