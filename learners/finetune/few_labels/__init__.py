"""Let few labels go further: continued pretraining on unlabelled readings, and augmentations that validation selects."""
