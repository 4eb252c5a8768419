"""How ARI, NMI, F1 and AUROC are computed."""
