"""The offline fine-tuning run."""
