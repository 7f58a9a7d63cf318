"""Several devices: peer access and queries: codes 250 to 259."""
