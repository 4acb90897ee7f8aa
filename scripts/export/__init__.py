"""A trained run as one file that needs neither this project nor its prompts: image in, anomaly map and score out."""
