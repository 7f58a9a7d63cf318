"""Orion on Kubernetes: what runs in the cluster besides controller and server."""
