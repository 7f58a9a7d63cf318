"""A worker process: one client process's CUDA contexts, memory and rings, and nobody else's."""
