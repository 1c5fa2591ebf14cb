"""The manifests, and the code that checks them without a cluster."""
