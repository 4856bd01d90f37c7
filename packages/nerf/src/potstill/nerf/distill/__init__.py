"""Field to field: a trained field becomes one of another kind, without the images."""
