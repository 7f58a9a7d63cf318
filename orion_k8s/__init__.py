"""Orion on Kubernetes: what runs beside kubelets and schedulers."""
