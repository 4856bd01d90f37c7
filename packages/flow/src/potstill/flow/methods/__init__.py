"""Methods: what a student, and a critic where there is one, are trained by."""
