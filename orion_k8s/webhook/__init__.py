"""The admission webhook: pods that ask for vGPUs get what they need for it, and what cannot be meant is refused."""
