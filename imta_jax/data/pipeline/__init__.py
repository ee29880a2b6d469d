"""How images become batches: windows, augmentation, decoding, collation, devices."""
