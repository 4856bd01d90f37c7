"""Training: data, criteria, the distiller, the classifier, and the jobs."""
