"""Speech to text: cut utterances out of a microphone's sound, and transcribe them."""
