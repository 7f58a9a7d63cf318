"""Dynamic Resource Allocation (resource.k8s.io/v1): the pool as devices of a cluster, and vGPUs for ResourceClaims."""

DRIVER = "gpu.virtaitech.com"
API = "resource.k8s.io/v1"
