"""Benchmark scores: ARI, NMI, F1, AUROC, purity, silhouette, LISI, BRAS, CiLISI and kBET."""
