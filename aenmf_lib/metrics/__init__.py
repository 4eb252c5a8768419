"""Benchmark scores: ARI, NMI, F1, AUROC, purity, silhouette and LISI."""
