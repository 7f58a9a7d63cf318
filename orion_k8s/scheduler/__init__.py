"""orion-scheduler: kube-scheduler's extender over the controller's allocator, and the admission webhook."""
