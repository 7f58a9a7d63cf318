"""Images kept by content, libraries and kernels: codes 230 to 249."""
