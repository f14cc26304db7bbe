"""The kustomize base and its overlays; what they share with the Helm chart is made from it (``__main__``)."""
