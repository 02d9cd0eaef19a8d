"""What every learner answers to, and the checks of what it is given."""
