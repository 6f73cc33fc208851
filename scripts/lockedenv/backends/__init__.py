"""The two ways to make a prefix, conda and pip, and what they share: fetching by hash, mirrors, the
cache, uv.
"""
