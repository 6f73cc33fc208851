"""The remedy that ends most of the pod's verdicts."""

BACK = "give this pod back, and take another"
