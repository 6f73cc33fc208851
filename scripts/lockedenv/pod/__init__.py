"""The verdict on a machine before anything is fetched."""
