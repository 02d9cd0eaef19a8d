"""What a model is given: the feature spec, and from it the ids and numbers of a row."""
