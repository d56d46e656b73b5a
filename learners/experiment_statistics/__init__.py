"""The live experiment of challenger against champion: plan, schedule, pair differences, test, guard, alpha budget."""
