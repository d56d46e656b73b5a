"""After promotion: probation statistics, sequential tests, consistency of feedback sources."""
