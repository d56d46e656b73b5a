"""Change training examples so that few labels go further: texts, pictures, sounds, and mixtures of two examples."""
