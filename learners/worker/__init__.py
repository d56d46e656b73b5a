"""The learner process: its loop, the learner, its journal, its candidates."""
