"""Check the manifests without a cluster: `python -m k8s.check`.

    folder -> rendered documents -> effective pods and services -> rules -> findings

Documents are what `kubectl kustomize` prints. Effective pods are what runs once the controllers of Kubernetes and KubeRay
have done their part: policies are about those, as much of what runs is written in no manifest.
"""
