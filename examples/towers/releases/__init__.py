"""Released files: their tensors by name, their towers, and the heads that most files share."""
