"""Run the trainings of the verbs on Ray: several seeds of an environment, and data-parallel fine-tuning."""
