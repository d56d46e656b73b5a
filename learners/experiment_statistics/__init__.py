"""The live experiment of challenger against champion: plan, schedule, pair differences, sequential tests, guard, alpha budget."""
