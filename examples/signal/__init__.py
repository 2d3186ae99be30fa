"""Signal: what its released checkpoints hold, for the layers of this library."""
