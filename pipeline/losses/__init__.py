"""What trains a student: one pure function a file, logits and targets in, a loss out."""
