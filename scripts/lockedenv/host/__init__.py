"""Facts of this machine, read at the edge: GPUs, limits, disks, processes."""
