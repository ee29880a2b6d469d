"""From images to batches: crops, augmentation, decoding, collation, on-device data."""
