"""Settings of what is learned: policy, rewards, tasks, learner."""
