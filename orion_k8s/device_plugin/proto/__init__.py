"""The kubelet's device plugin API, v1beta1: the official .proto and the modules that protoc makes of it."""
