"""Virtual memory, stream-ordered pools, IPC: codes 130 to 169."""
