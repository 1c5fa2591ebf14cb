"""Pods of rendered manifests, run on one Linux machine as namespaces: without Docker, a registry or an API server.

What stands in for what:

==================  =======================================================================================================
image               this machine's root, read-only, with the repository at `/app` and the environment's `bin` first on the path
kubelet             :mod:`tests.k8s.nodes.pod`: init containers, volumes, variables, security context, probes
container runtime   `unshare`, `nsenter`, an overlay and `pivot_root`, `setpriv`; every container is process 1 of its own
CNI                 a bridge in a namespace of its own, an address per pod, NetworkPolicies as nftables rules in each pod
Services            lines in `/etc/hosts`, as one pod stands behind each name
controllers         the test: it starts what a Deployment, a StatefulSet or a RayCluster would start, and replaces what died
==================  =======================================================================================================

Not stood in for: limits of CPU and memory, seccomp, admission, scheduling, addresses of Services other than their pods'.
Fields that would change what runs and that nothing here honours are refused, so that a manifest never runs as less than it says.

Nothing is left behind, however the test ends: no namespace has a name, no mount is made outside of one, and every process
dies with the one that started it.
"""
