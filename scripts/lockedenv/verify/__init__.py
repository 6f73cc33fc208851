"""Is this the locked environment, and does it work here?"""
