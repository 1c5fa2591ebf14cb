"""The operator's verbs, one file each, and what they share: the only package that imports Ray, MLflow and DeepSpeed."""
