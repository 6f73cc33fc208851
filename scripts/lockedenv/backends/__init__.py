"""The two ways to fill a prefix, conda and pip, and how their files are fetched and kept."""
